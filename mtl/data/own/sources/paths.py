"""Recognising a source by its path: class folders, or some kind of table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from mtl.data.own.splits import part_named

Kind = Literal["classes", "csv", "jsonl", "parquet", "disk"]
CSV = (".csv", ".tsv")
JSONL = (".jsonl", ".jsonl.gz")


def kind_of(root: Path, noun: str, jsonl: bool = False) -> Kind:
    """The kind of source at an existing path, judged by names alone.

    Args:
        noun: the word for an example, for messages.
        jsonl: such files are tables too.
    """
    tables = {".parquet": "parquet"} | dict.fromkeys(CSV, "csv") | (dict.fromkeys(JSONL, "jsonl") if jsonl else {})
    if root.is_file():
        if suffix := suffix_of(root, tables):
            return tables[suffix]  # type: ignore[return-value]
        known = f"{', '.join((*CSV, *(JSONL if jsonl else ())))} or .parquet"
        raise ValueError(f"{root} is a {root.suffix or 'nameless'} file; expected a folder, {known} (unpack archives)")
    if not any(root.iterdir()):
        raise ValueError(f"{root} is empty; expected one sub-folder of {noun}s per class")
    if any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return "disk"
    subfolders = folders_in(root)
    if len(subfolders) < 2 and tables_in(root, CSV):
        return "csv"
    if jsonl and len(subfolders) < 2 and tables_in(root, JSONL):
        return "jsonl"
    if any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return "parquet"
    if not subfolders:
        hint = "or a csv of file names and labels" if noun == "image" else "or a table of texts and labels"
        raise ValueError(f"{root} has no sub-folders; expected one sub-folder of {noun}s per class, {hint}")
    return "classes"


def folders_in(root: Path) -> list[Path]:
    """Folders in a folder, but for hidden ones and such as ``__MACOSX``."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def tables_in(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with these suffixes in a folder."""
    return sorted(p for p in root.iterdir() if suffix_of(p, suffixes) and not p.name.startswith("."))


def suffix_of(path: Path, suffixes: Collection[str]) -> str | None:
    """The one of these suffixes that a file name ends in."""
    return next((s for s in suffixes if path.name.lower().endswith(s)), None)


def table_files(root: Path, suffixes: Collection[str]) -> dict[str | None, Path]:
    """The table at a path, or those in a folder, by part."""
    files = [root] if root.is_file() else tables_in(root, suffixes)
    if len(files) == 1:
        return {None: files[0]}
    parts = {part_named(f.name.split(".")[0]): f for f in files}
    if None in parts or len(parts) < len(files):
        raise ValueError(f"{root} has several tables, {[f.name for f in files]}; pass the path of the one to use")
    return {**parts}


def class_files(root: Path, suffixes: Collection[str], noun: str) -> list[tuple[str | None, str, str]]:
    """Part, class and path of the files in class folders, or in train/val/test folders of such."""
    subfolders = folders_in(root)
    groups: list[tuple[str | None, Path]] = [(None, folder) for folder in subfolders]
    if len(subfolders) > 1 and all(part_named(f.name) for f in subfolders):
        groups = [(part_named(f.name), folder) for f in subfolders for folder in folders_in(f)]
        if not groups:
            raise ValueError(
                f"{root} has {[f.name for f in subfolders]} without class folders in them; "
                "if a csv has the labels, pass the path of the csv"
            )
    elif len(subfolders) == 1:
        inner = f"; or pass {subfolders[0]} if the classes are in there" if folders_in(subfolders[0]) else ""
        raise ValueError(
            f"{root} has one sub-folder, {subfolders[0].name!r}; expected one per class, two at least{inner}"
        )
    found = [(part, folder.name, path) for part, folder in groups for path in files_in(folder, suffixes)]
    held = {label for _, label, _ in found}
    if empty := sorted({folder.name for _, folder in groups} - held):
        raise ValueError(
            f"class folders without {noun}s in {root}: {empty}; "
            f"remove them, or convert their files to one of {sorted(suffixes)}"
        )
    return found


def files_in(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Files at any depth, sorted by path; hidden ones, such as macOS's ``._x.jpg``, do not count."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    return sorted(p.as_posix() for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts))
