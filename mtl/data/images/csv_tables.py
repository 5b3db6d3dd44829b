"""Images named in a csv or tsv file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl.data.images.listing import IMAGE_COLUMNS, LABEL_COLUMNS, Files, Listing, Options, column_of, folders_in
from mtl.data.splits import class_labels, part_named


def from_csv(files: Mapping[str | None, Path], options: Options) -> Listing:
    """The images named in tables, by the part that each table is."""
    rows: dict[str, tuple[str, str | None]] = {}
    for part, file in files.items():
        names, labels = _read_csv(file, options)
        base = options.image_folder or _image_folder(file, names)
        for name, label in zip(names, class_labels(labels, str(file)), strict=True):
            known, _ = rows.setdefault(str(base / name), (label, part))
            if known != label:
                raise ValueError(f"{file}: {name} is listed under {known!r} and {label!r}; each image needs one class")
    source = ", ".join(map(str, files.values()))
    labels, parts = zip(*rows.values(), strict=True) if rows else ((), ())
    return Listing(source, Files(tuple(rows)), labels, parts)


def csv_files(root: Path) -> dict[str | None, Path]:
    """The table at a path, or those in a folder, by part."""
    files = [root] if root.is_file() else tables_in(root)
    if len(files) == 1:
        return {None: files[0]}
    parts = {part_named(f.stem): f for f in files}
    if None in parts or len(parts) < len(files):
        raise ValueError(f"{root} has several tables, {[f.name for f in files]}; pass the path of the one to use")
    return {**parts}


def _read_csv(file: Path, options: Options) -> tuple[list[str], list[str | None]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:  # -sig: spreadsheets write a byte order mark
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
        names = list(reader.fieldnames or ())
        image = column_of(names, options.image_column, IMAGE_COLUMNS, "image", str(file))
        label = column_of(names, options.label_column, LABEL_COLUMNS, "label", str(file))
        rows = list(reader)
    return [row[image] or "" for row in rows], [row[label] for row in rows]


def _image_folder(file: Path, names: Sequence[str]) -> Path:
    """The folder that holds the first file named in a csv: that of the csv, or one in it."""
    candidates = [file.parent, *folders_in(file.parent)]
    for folder in candidates:
        if names and (folder / names[0]).is_file():
            return folder
    raise ValueError(
        f"{file} names {names[0] if names else None!r}, which is not in {file.parent} nor a folder in it; "
        "pass image_folder=, and see that names carry their suffix"
    )


def tables_in(root: Path) -> list[Path]:
    """The csv and tsv files in a folder."""
    return sorted(p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and not p.name.startswith("."))
