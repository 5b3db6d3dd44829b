"""Columns of csv and tsv files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mtl.data.sources.listing import LABEL_COLUMNS, column_of


def read_csv(
    file: Path, column: str | None, usual: Sequence[str], role: str, label_column: str | None
) -> tuple[list[str], list[str | None]]:
    """A column and that of the labels; see :func:`~mtl.data.sources.listing.column_of` for how they are told."""
    with file.open(newline="", encoding="utf-8-sig") as stream:  # -sig: spreadsheets write a byte order mark
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
        names = list(reader.fieldnames or ())
        found = column_of(names, column, usual, role, str(file))
        label = column_of(names, label_column, LABEL_COLUMNS, "label", str(file))
        rows = list(reader)
    return [row[found] or "" for row in rows], [row[label] for row in rows]
