"""Data sets of texts: tables with several label columns, and whatever else :func:`open_texts` opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.data.families.data_set import CLASS, DataSet, is_blank
from mtl.data.families.image_sets import usual_column
from mtl.data.own.sources.listing import Options, column_of
from mtl.data.own.sources.paths import kind_of, table_files
from mtl.data.own.sources.tables import read_table
from mtl.data.own.texts.collection import TextCollection
from mtl.data.own.texts.opening import TEXT_COLUMNS, as_texts, open_texts


def open_text_set(name: str, path: str | Path, columns: Sequence[str], options: Options) -> DataSet:
    """The data set at a path; ``columns`` are those asked for, which parquet and hub data sets need to know."""
    root = Path(path).expanduser()
    kind = kind_of(root, "text") if root.exists() else "hub"
    if kind in ("table", "zip"):
        return _table_set(name, table_files(root), options)
    files = {"encoding": options.encoding, "class_level": options.class_level} if kind == "classes" else {}
    return _listed_set(name, path, columns, options.column, files)


def _table_set(name: str, files: Mapping[str | None, Path], options: Options) -> DataSet:
    texts: list[str] = []
    rows: list[Mapping[str, Any]] = []
    columns: dict[str, None] = {}
    notes: list[str] = []
    for file in files.values():
        table = read_table(file, options.encoding)
        text = column_of(table.columns, options.column, TEXT_COLUMNS, "text", str(file))
        columns |= dict.fromkeys(k for k in table.columns if k != text)
        texts += as_texts(table.cells(text), str(file))
        rows += table.rows
        notes += table.notes
    source = ", ".join(map(str, files.values()))
    return _distinct(name, source, texts, {k: [row.get(k) for row in rows] for k in columns}, notes=tuple(notes))


def _listed_set(
    name: str, path: str | Path, columns: Sequence[str], text_column: str | None, files: Mapping[str, Any]
) -> DataSet:
    """Folders, parquet, hub: opened once for each column that is asked for."""
    opened: dict[str, TextCollection] = {
        c or CLASS: open_texts(path, text_column=text_column, label_column=c, **files) for c in columns or (None,)
    }
    first = next(iter(opened.values()))
    labels: dict[str, list[Any]] = {}
    for column, collection in opened.items():
        by_position = {i: label for label, places in collection.items.items() for i in places}
        labels[column] = [by_position.get(i) for i in range(len(first.texts))]
    return _distinct(name, first.source, first.texts, labels, first.parts)


def _distinct(
    name: str,
    source: str,
    texts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    given: Mapping[str, Sequence[str]] | None = None,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """Each text once, with the labels of all rows that have it; a column in which they disagree has none for it."""
    place = {text: i for i, text in enumerate(dict.fromkeys(t for t in texts if t))}
    labels: dict[str, list[Any]] = {k: [None] * len(place) for k in columns}
    disagree: dict[str, set[int]] = {k: set() for k in columns}
    for column, values in columns.items():
        for text, value in zip(texts, values, strict=True):
            if text and not is_blank(value):
                known = labels[column][place[text]]
                if known is not None and known != value:
                    disagree[column].add(place[text])
                labels[column][place[text]] = value
        for i in disagree[column]:
            labels[column][i] = None
    several = {c: f"{len(d)} of them because rows of one text disagree" for c, d in disagree.items() if d}
    blank = sum(not t for t in texts)
    counts = {"blank texts": blank, "texts that are given again": len(texts) - blank - len(place)}
    notes += tuple(f"{n} {what}" for what, n in counts.items() if n)
    examples = TextCollection(source, {}, list(place))
    usual = usual_column(list(columns))
    return DataSet(name, examples, list(place), labels, usual, given or {}, notes, several)
