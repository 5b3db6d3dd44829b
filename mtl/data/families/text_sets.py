"""Data sets of texts: tables with several label columns, and whatever else :func:`open_texts` opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.data.families.data_set import CLASS, DataSet, is_blank
from mtl.data.families.image_sets import usual_column
from mtl.data.own.sources.listing import column_of
from mtl.data.own.sources.paths import CSV, JSONL, kind_of, table_files
from mtl.data.own.texts.collection import TextCollection
from mtl.data.own.texts.opening import TEXT_COLUMNS, open_texts, table_rows


def open_text_set(name: str, path: str | Path, columns: Sequence[str], text_column: str | None) -> DataSet:
    """The data set at a path; ``columns`` are those asked for, which parquet and hub data sets need to know."""
    root = Path(path).expanduser()
    kind = kind_of(root, "text", jsonl=True) if root.exists() else "hub"
    if kind in ("csv", "jsonl"):
        return _table_set(name, table_files(root, CSV if kind == "csv" else JSONL), text_column)
    return _listed_set(name, path, columns, text_column)


def _table_set(name: str, files: Mapping[str | None, Path], text_column: str | None) -> DataSet:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    columns: dict[str, None] = {}
    for file in files.values():
        names, table = table_rows(file)
        text = column_of(names, text_column, TEXT_COLUMNS, "text", str(file))
        columns |= dict.fromkeys(k for k in names if k and k != text)
        rows += [("" if row.get(text) is None else str(row[text]).strip(), row) for row in table]
    source = ", ".join(map(str, files.values()))
    return _distinct(name, source, [t for t, _ in rows], {k: [row.get(k) for _, row in rows] for k in columns})


def _listed_set(name: str, path: str | Path, columns: Sequence[str], text_column: str | None) -> DataSet:
    """Folders, parquet, hub: opened once for each column that is asked for."""
    opened: dict[str, TextCollection] = {c: open_texts(path, text_column=text_column, label_column=c) for c in columns}
    opened = opened or {CLASS: open_texts(path, text_column=text_column)}
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
    notes = (f"{n} blank texts",) if (n := sum(not t for t in texts)) else ()
    examples = TextCollection(source, {}, list(place))
    usual = usual_column(list(columns))
    return DataSet(name, examples, list(place), labels, usual, given or {}, notes, several)
