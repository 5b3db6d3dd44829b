"""Data sets of images: class folders or a zip of them, with a table of further labels, or a table alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mtl.data.families.data_set import CLASS, DataSet, is_blank
from mtl.data.own.images.checking import find_unreadable
from mtl.data.own.images.collection import ImageCollection
from mtl.data.own.images.duplicates import ContentReader, find_duplicates, note_duplicates
from mtl.data.own.images.files import IMAGE_COLUMNS, SUFFIXES, Files, named_images
from mtl.data.own.images.opening import Verify, open_images
from mtl.data.own.images.zip_files import ZippedFiles, class_members
from mtl.data.own.sources.class_folders import ClassFiles, class_files, contents_of
from mtl.data.own.sources.listing import LABEL_COLUMNS, Options, column_of
from mtl.data.own.sources.paths import folders_in, kind_of, table_files
from mtl.data.own.sources.tables import CSV, read_table
from mtl.data.own.splits import disjoint_parts
from mtl.items import Mode

TABLES = tuple(f"{stem}{suffix}" for stem in ("attributes", "metadata") for suffix in CSV)


def open_image_set(
    name: str, path: str | Path, columns: Sequence[str], options: Options, mode: Mode, verify: Verify
) -> DataSet:
    """The data set at a path; ``columns`` are those asked for, which parquet and hub data sets need to know."""
    root = Path(path).expanduser()
    archive = _archive(root)
    kind = kind_of(root, "image") if root.exists() and not archive else "hub"
    if archive:
        folder, found = class_members(archive, options.class_level)
        reader = ZippedFiles(str(archive), tuple(folder + path for path in found.paths))
        made = _class_set(name, archive.parent, reader, found, options, mode)
    elif kind == "classes":
        found = class_files(contents_of(root), SUFFIXES, "image", options.class_level, read=TABLES)
        reader = Files(tuple((root / path).as_posix() for path in found.paths))
        made = _class_set(name, root, reader, found, options, mode)
    elif kind == "table":
        made, reader = _table_set(name, table_files(root), options, mode)
    else:
        return _listed_set(name, path, columns, options, mode, verify)
    return _once(*_checked(made, reader, verify), reader, verify)


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
    name: str, folder: Path, reader: ContentReader, found: ClassFiles, options: Options, mode: Mode
) -> DataSet:
    """Class folders, and the columns of the table beside them."""
    columns: dict[str, Sequence[Any]] = {CLASS: found.labels}
    notes = found.notes
    if table := next((folder / t for t in TABLES if (folder / t).is_file()), None):
        further, unmatched = _further_columns(table, found.paths, options)
        columns |= {(f"{CLASS} of {table.name}" if k == CLASS else k): v for k, v in further.items()}
        notes += unmatched
    given = disjoint_parts(found.parts, found.labels, str(folder))
    return DataSet(name, ImageCollection(str(folder), {}, reader, mode), found.paths, columns, CLASS, given, notes)


def _further_columns(file: Path, keys: Sequence[str], options: Options) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
    """The columns of a table, in the order of the images; and notes about rows and images without a partner."""
    table = read_table(file, options.encoding)
    column = column_of(table.columns, options.column, IMAGE_COLUMNS, "image", str(file))
    row_of = {_normal(cell): row for cell, row in zip(table.cells(column), table.rows, strict=True)}
    if len(row_of) < len(table.rows):
        raise ValueError(f"{file} lists {len(table.rows) - len(row_of)} images more than once; keep one row of each")
    found = [row_of.get(key) for key in keys]
    if not any(found):
        raise ValueError(
            f"{file}: none of its files, such as {next(iter(row_of), '')!r}, is an image in {file.parent}; expected "
            f"paths such as {keys[0] if keys else 'class/0001.jpg'!r}"
        )
    pairs = {"images without a row": found.count(None), "rows without an image": len(row_of.keys() - set(keys))}
    notes = tuple(f"{n} {what} in {file.name}" for what, n in pairs.items() if n)
    further = {k: [row.get(k) if row else None for row in found] for k in table.columns if k != column}
    return further, (*table.notes, *notes)


def _table_set(
    name: str, files: Mapping[str | None, Path], options: Options, mode: Mode
) -> tuple[DataSet, ContentReader]:
    """The images that tables name; further columns are labels."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    notes: list[str] = []
    for file in files.values():
        table = read_table(file, options.encoding)
        column = column_of(table.columns, options.column, IMAGE_COLUMNS, "image", str(file))
        for key, path, row in zip(*named_images(table, file, column, options.image_folder), table.rows, strict=True):
            labels = {k: v for k, v in row.items() if k != column}
            if rows.setdefault(path, (key, labels))[1] != labels:
                raise ValueError(f"{file}: {key} is listed twice with different labels; keep one row of each image")
        notes += table.notes
    columns = list(dict.fromkeys(k for _, labels in rows.values() for k in labels))
    labels = {k: [labels.get(k) for _, labels in rows.values()] for k in columns}
    reader = Files(tuple(rows))
    examples = ImageCollection(", ".join(map(str, files.values())), {}, reader, mode)
    keys = [key for key, _ in rows.values()]
    return DataSet(name, examples, keys, labels, usual_column(columns), notes=tuple(notes)), reader


def _listed_set(
    name: str, path: str | Path, columns: Sequence[str], options: Options, mode: Mode, verify: Verify
) -> DataSet:
    """Parquet, hub and other sources of :func:`open_images`: opened once for each column that is asked for."""
    opened = {
        c or CLASS: open_images(path, image_column=options.column, label_column=c, mode=mode, verify=verify)
        for c in columns or (None,)
    }
    first = next(iter(opened.values()))
    labels: dict[str, Sequence[str | None]] = {}
    for column, collection in opened.items():
        by_position = {i: label for label, places in collection.items.items() for i in places}
        labels[column] = [by_position.get(i) for i in range(len(first.reader))]
    keys = [first.reader.name(i) for i in range(len(first.reader))]
    return DataSet(name, first, keys, labels, next(iter(labels)), first.parts, first.notes)


def _checked(data_set: DataSet, reader: ContentReader, verify: Verify) -> tuple[DataSet, set[int]]:
    """Without the labels of images that cannot be read, so that no family draws them; and their positions."""
    bad = {} if verify == "off" else find_unreadable(reader, decode=verify == "decode")
    if not bad:
        return data_set, set()
    columns = {k: [None if i in bad else v for i, v in enumerate(values)] for k, values in data_set.columns.items()}
    position, reason = next(iter(bad.items()))
    note = f"{len(bad)} images that cannot be read, such as {reader.name(position)} ({reason})"
    return replace(data_set, columns=columns, notes=(*data_set.notes, note)), set(bad)


def _once(data_set: DataSet, bad: set[int], reader: ContentReader, verify: Verify) -> DataSet:
    """Each image once, with the labels of all that are the same; a column in which they disagree has none for it."""
    same = [] if verify == "off" else find_duplicates(reader, bad)
    if not same:
        return data_set
    columns = {k: list(values) for k, values in data_set.columns.items()}
    column_notes = dict(data_set.column_notes)
    for name, values in columns.items():
        apart = []
        for positions in same:
            found = {values[i] for i in positions if not is_blank(values[i])}
            for i in positions:
                values[i] = None
            values[positions[0]] = found.pop() if len(found) == 1 else None
            if found:
                apart.append(positions[0])
        if apart:
            column_notes[name] = f"{len(apart)} because the same image disagrees, such as {reader.name(apart[0])}"
    notes = note_duplicates(reader, [(i, first) for first, *others in same for i in others])
    return replace(data_set, columns=columns, notes=(*data_set.notes, *notes), column_notes=column_notes)


def usual_column(columns: Sequence[str]) -> str | None:
    """The column that goes by a usual name for labels, or the only one."""
    found = [c for c in columns if c.lower() in LABEL_COLUMNS] or list(columns)
    return found[0] if len(found) == 1 else None


def _normal(name: object) -> str:
    return PurePosixPath(str(name or "").replace("\\", "/")).as_posix()
