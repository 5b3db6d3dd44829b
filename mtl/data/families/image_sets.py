"""Data sets of images: class folders or a zip of them, with a table of further labels, or a table alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mtl.data.families.data_set import CLASS, DataSet
from mtl.data.own.images.checking import find_unreadable
from mtl.data.own.images.collection import ImageCollection, Mode, Reader
from mtl.data.own.images.files import IMAGE_COLUMNS, SUFFIXES, Files, image_folder
from mtl.data.own.images.opening import open_images
from mtl.data.own.images.zip_files import ZippedFiles, class_members
from mtl.data.own.sources.csv_tables import csv_rows
from mtl.data.own.sources.listing import LABEL_COLUMNS, column_of
from mtl.data.own.sources.paths import CSV, class_files, folders_in, kind_of, table_files
from mtl.data.own.splits import disjoint_parts

TABLES = tuple(f"{stem}{suffix}" for stem in ("attributes", "metadata") for suffix in CSV)


def open_image_set(name: str, path: str | Path, columns: Sequence[str], mode: Mode, verify: str) -> DataSet:
    """The data set at a path; ``columns`` are those asked for, which parquet and hub data sets need to know."""
    root = Path(path).expanduser()
    archive = _archive(root)
    kind = kind_of(root, "image") if root.exists() and not archive else "hub"
    if archive:
        found = class_members(archive)
        reader = ZippedFiles(str(archive), tuple(member for _, member in found))
        folder = os.path.commonpath([str(PurePosixPath(member).parent.parent) for _, member in found])
        keys = [str(PurePosixPath(member).relative_to(folder)) for _, member in found]
        made = _class_set(name, archive.parent, reader, keys, [label for label, _ in found], mode)
    elif kind == "classes":
        files = class_files(root, SUFFIXES, "image")
        keys = [Path(file).relative_to(root).as_posix() for _, _, file in files]
        labels = [label for _, label, _ in files]
        made = _class_set(name, root, Files(tuple(file for *_, file in files)), keys, labels, mode)
        given = disjoint_parts([part for part, *_ in files], labels, str(root))
        made = replace(made, given=given)
    elif kind == "csv":
        made = _table_set(name, table_files(root, CSV), mode)
    else:
        return _listed_set(name, path, columns, mode)
    return _checked(made, reader_of(made), verify)


def reader_of(data_set: DataSet) -> Reader:
    """The encoded images of a data set."""
    assert isinstance(data_set.examples, ImageCollection)
    return data_set.examples.reader


def _archive(root: Path) -> Path | None:
    """The zip archive at a path, or the only one in a folder without class folders."""
    if root.is_file():
        return root if root.suffix.lower() == ".zip" else None
    found = sorted(root.glob("*.zip")) if root.is_dir() and len(folders_in(root)) < 2 else []
    if len(found) > 1:
        raise ValueError(
            f"{root} has {len(found)} archives, {[f.name for f in found]}; pass the path of the one to use"
        )
    return found[0] if found else None


def _class_set(
    name: str, folder: Path, reader: Reader, keys: Sequence[str], labels: Sequence[str], mode: Mode
) -> DataSet:
    """Class folders, and the columns of the table beside them."""
    columns: dict[str, Sequence[str | None]] = {CLASS: list(labels)}
    notes = ()
    if table := next((folder / t for t in TABLES if (folder / t).is_file()), None):
        further, notes = _further_columns(table, keys)
        columns |= {(f"{CLASS} of {table.name}" if k == CLASS else k): v for k, v in further.items()}
    return DataSet(name, ImageCollection(str(folder), {}, reader, mode), keys, columns, CLASS, notes=notes)


def _further_columns(table: Path, keys: Sequence[str]) -> tuple[dict[str, list[str | None]], tuple[str, ...]]:
    """The columns of a table, in the order of the images; and notes about rows and images without a partner."""
    names, rows = csv_rows(table)
    column = column_of(names, None, IMAGE_COLUMNS, "image", str(table))
    row_of = {_normal(row[column] or ""): row for row in rows}
    if len(row_of) < len(rows):
        raise ValueError(f"{table} lists {len(rows) - len(row_of)} images more than once; keep one row of each")
    found = [row_of.get(key) for key in keys]
    if not any(found):
        raise ValueError(
            f"{table}: none of its files, such as {next(iter(row_of), '')!r}, is an image in {table.parent}; expected "
            f"paths such as {keys[0]!r}"
        )
    pairs = {"images without a row": found.count(None), "rows without an image": len(row_of.keys() - set(keys))}
    notes = tuple(f"{n} {what} in {table.name}" for what, n in pairs.items() if n)
    further = {k: [row.get(k) if row else None for row in found] for k in names if k and k != column}
    return further, notes


def _table_set(name: str, files: Mapping[str | None, Path], mode: Mode) -> DataSet:
    """The images that tables name; further columns are labels."""
    rows: dict[str, tuple[str, dict[str, str | None]]] = {}
    for file in files.values():
        names, table = csv_rows(file)
        column = column_of(names, None, IMAGE_COLUMNS, "image", str(file))
        base = image_folder(file, [row[column] or "" for row in table])
        for row in table:
            labels = {k: v for k, v in row.items() if k and k != column}
            key = _normal(row[column] or "")
            if rows.setdefault(str(base / key), (key, labels))[1] != labels:
                raise ValueError(f"{file}: {key} is listed twice with different labels; keep one row of each image")
    columns = list(dict.fromkeys(k for _, labels in rows.values() for k in labels))
    labels = {k: [labels.get(k) for _, labels in rows.values()] for k in columns}
    examples = ImageCollection(", ".join(map(str, files.values())), {}, Files(tuple(rows)), mode)
    return DataSet(name, examples, [key for key, _ in rows.values()], labels, usual_column(columns))


def _listed_set(name: str, path: str | Path, columns: Sequence[str], mode: Mode) -> DataSet:
    """Parquet, hub and other sources of :func:`open_images`: opened once for each column that is asked for."""
    opened = {c: open_images(path, label_column=c, mode=mode) for c in columns} or {CLASS: open_images(path, mode=mode)}
    first = next(iter(opened.values()))
    labels: dict[str, Sequence[str | None]] = {}
    for column, collection in opened.items():
        by_position = {i: label for label, places in collection.items.items() for i in places}
        labels[column] = [by_position.get(i) for i in range(len(first.reader))]
    keys = [first.reader.name(i) for i in range(len(first.reader))]
    return DataSet(name, first, keys, labels, next(iter(opened)), given=first.parts)


def _checked(data_set: DataSet, reader: Reader, verify: str) -> DataSet:
    """Without the labels of images that cannot be read, so that no family draws them."""
    bad = {} if verify == "off" else find_unreadable(reader, decode=verify == "decode")
    if not bad:
        return data_set
    columns = {k: [None if i in bad else v for i, v in enumerate(values)] for k, values in data_set.columns.items()}
    position, reason = next(iter(bad.items()))
    note = f"{len(bad)} images that cannot be read, such as {reader.name(position)} ({reason})"
    return replace(data_set, columns=columns, notes=(*data_set.notes, note))


def usual_column(columns: Sequence[str]) -> str | None:
    """The column that goes by a usual name for labels, or the only one."""
    found = [c for c in columns if c.lower() in LABEL_COLUMNS] or list(columns)
    return found[0] if len(found) == 1 else None


def _normal(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()
