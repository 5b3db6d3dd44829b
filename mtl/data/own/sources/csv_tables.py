"""Rows of csv and tsv files."""

from __future__ import annotations

import csv
from pathlib import Path


def csv_rows(file: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """Names of the columns, and the rows by name; None where a row is too short."""
    with file.open(newline="", encoding="utf-8-sig") as stream:  # -sig: spreadsheets write a byte order mark
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
        return list(reader.fieldnames or ()), list(reader)
