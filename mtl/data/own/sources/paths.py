"""Recognising a source by its path: class folders, an archive, or some kind of table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from mtl.data.own.sources.tables import CSV, JSON, JSONL, TABLES
from mtl.data.own.splits import part_named

Kind = Literal["classes", "table", "zip", "parquet", "disk"]


def kind_of(root: Path, noun: str) -> Kind:
    """The kind of source at an existing path, judged by names alone.

    Args:
        noun: the word for an example, for messages.
    """
    if root.is_file():
        if suffix_of(root, TABLES):
            return "table"
        if root.suffix.lower() in (".zip", ".parquet"):
            return root.suffix.lower()[1:]  # type: ignore[return-value]
        known = f"{', '.join(TABLES)}, .zip or .parquet"
        raise ValueError(f"{root} is a {root.suffix or 'nameless'} file; expected a folder, {known}")
    if not any(root.iterdir()):
        raise ValueError(f"{root} is empty; expected one sub-folder of {noun}s per class")
    if any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return "disk"
    subfolders = folders_in(root)
    if len(subfolders) < 2 and (tables_in(root, CSV) or tables_in(root, JSONL)):
        return "table"
    if any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return "parquet"
    if not subfolders and tables_in(root, JSON):
        return "table"
    if not subfolders:
        hint = "or a csv of file names and labels" if noun == "image" else "or a table of texts and labels"
        raise ValueError(f"{root} has no sub-folders; expected one sub-folder of {noun}s per class, {hint}")
    return "classes"


def folders_in(root: Path) -> list[Path]:
    """Folders in a folder, but for hidden ones and such as ``__MACOSX``."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def tables_in(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with these suffixes in a folder."""
    return sorted(p for p in root.iterdir() if p.is_file() and suffix_of(p, suffixes) and not p.name.startswith("."))


def suffix_of(path: Path, suffixes: Collection[str]) -> str | None:
    """The one of these suffixes that a file name ends in."""
    return next((s for s in suffixes if path.name.lower().endswith(s)), None)


def table_files(root: Path) -> dict[str | None, Path]:
    """The table at a path, or those in a folder, by part: csv and tsv, or else jsonl, or else json."""
    if root.is_file():
        return {None: root}
    files = next(filter(None, (tables_in(root, suffixes) for suffixes in (CSV, JSONL, JSON))), [])
    if len(files) == 1:
        return {None: files[0]}
    parts = {part_named(f.name.split(".")[0]): f for f in files}
    if None in parts or len(parts) < len(files):
        raise ValueError(f"{root} has several tables, {[f.name for f in files]}; pass the path of the one to use")
    return {**parts}


def files_in(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Files at any depth, sorted by path; hidden ones, such as macOS's ``._x.jpg``, do not count."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    return sorted(p.as_posix() for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts))
