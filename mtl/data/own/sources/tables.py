"""The one reader of tables in files: csv, tsv, jsonl and JSON arrays, each also packed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl.data.own.sources.decoding import decode, unpack
from mtl.data.own.sources.delimited import csv_rows, doubtful_rows, tsv_rows
from mtl.data.own.sources.json_tables import json_rows

PLAIN = (".csv", ".tsv", ".jsonl", ".json")
CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
JSONL = (".jsonl", ".jsonl.gz")
JSON = (".json", ".json.gz")
TABLES = (*CSV, *JSONL, *JSON)


@dataclass(frozen=True)
class Table:
    """A table of a file.

    Args:
        columns: names, distinct, without space around them.
        rows: cells by column; strings of csv and tsv, whatever JSON holds. A key that a JSON object lacks is absent.
        lines: where in the file each row begins, or the number of an object, for messages.
        notes: what was left out.
    """

    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    lines: Sequence[int]
    notes: tuple[str, ...] = ()

    def cells(self, column: str) -> list[Any]:
        """The cells of a column; None where a JSON object lacks it."""
        return [row.get(column) for row in self.rows]


def read_table(file: Path, encoding: str | None = None) -> Table:
    """Read a table as it is, or refuse it in one line.

    Args:
        file: ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` (a list of objects), also as ``.gz``, or alone in a ``.zip``.
        encoding: of files without a byte order mark; UTF-8 by default.

    Raises:
        ValueError: naming the file, and the line where there is one: cells that are too few or too many, an open
            quotation mark, bytes that are not of the encoding, columns without a name or with the same, damaged JSON,
            no rows.
        OSError: the file cannot be read.
    """
    name, content = unpack(file, PLAIN)
    text = decode(content, str(file) if file.suffix.lower() != ".zip" else name, encoding)
    if name.lower().endswith((".json", ".jsonl")):
        return _from_objects(json_rows(text, str(file)), file)
    return _from_rows(text, file, is_tsv=name.lower().endswith(".tsv"))


def _from_rows(text: str, file: Path, is_tsv: bool) -> Table:
    """The table of a csv or tsv."""
    if is_tsv:
        rows, doubtful = tsv_rows(text, str(file)), []
    else:
        rows, delimiter = csv_rows(text, str(file))
        doubtful = doubtful_rows(text, rows, delimiter) if rows else []
    if len(rows) < 2:
        raise ValueError(
            f"{file} has {'a header and no rows' if rows else 'nothing in it'}; expected a header and rows"
        )
    names = [name.strip() for name in rows[0][1]]
    named = [i for i, name in enumerate(names) if name]
    twice = [k for k, count in Counter(names[i] for i in named).items() if count > 1]
    if twice or not named:
        what = f"the column {twice[0]!r} twice" if twice else "no column with a name"
        raise ValueError(f"{file} has {what} among {names}; give each a name of its own in the first line")
    missing = len(names) - len(named)
    notes = (f"{file}: {missing} columns without a name are left out",) if missing else ()
    if doubtful:
        notes += (
            f"{file}, line {doubtful[0]}: a cell goes over lines that could each be a row, as do {len(doubtful) - 1} "
            "others; if a quotation mark is a part of the text there, double it and put the text in quotation marks",
        )
        warnings.warn(notes[-1], stacklevel=3)
    cells = [{names[i]: row[i] for i in named} for _, row in rows[1:]]
    return Table(tuple(names[i] for i in named), cells, [line for line, _ in rows[1:]], notes)


def _from_objects(rows: Sequence[dict[str, Any]], file: Path) -> Table:
    if not rows:
        raise ValueError(f"{file} has nothing in it; expected objects")
    return Table(tuple(dict.fromkeys(name for row in rows for name in row)), rows, range(1, len(rows) + 1))
