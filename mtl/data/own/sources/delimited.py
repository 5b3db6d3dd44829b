"""Strict reading of csv and tsv: every row has as many cells as the header, or its line is named."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
LARGEST_CELL = 2**31 - 1  # characters; the csv module refuses more than 131,072 by default
Row = tuple[int, list[str]]
"""The line that it begins on, and its cells."""

_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n?", re.IGNORECASE)
_QUOTED_PARTS = re.compile(r'"[^"]*(?:"|$)')
_CELL = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^"\t\r\n]*+))(\t|\r?\n|\r|\Z)')
_NEEDS_QUOTES = re.compile(r'[\t\r\n",;]|^$')


def csv_rows(text: str, where: str) -> tuple[list[Row], str]:
    """Rows of a csv, of which the first is the header, and what divides their cells. Blank lines are left out.

    Cells are divided by the first of comma, semicolon, tab and bar that is in the header and gives every row as many
    cells as the header. Quotation marks around a cell are taken off, doubled ones within it stand for one.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: a row of another length, a quotation mark that is never closed, or text behind a closed one.
    """
    if declared := _SEPARATOR.match(text):  # a spreadsheet's first line
        return _same_length(_records(text, declared[1], where, skip=1), where, declared[1]), declared[1]
    header = next((line for line in _lines(text) if line.strip()), "")
    counts = {d: _QUOTED_PARTS.sub("", header).count(d) for d in DELIMITERS}
    errors: dict[str, ValueError] = {}
    for delimiter in [d for d, count in counts.items() if count] or [","]:
        try:
            return _same_length(_records(text, delimiter, where), where, delimiter), delimiter
        except ValueError as error:
            errors[delimiter] = error
    raise errors[max(errors, key=counts.__getitem__)]


def doubtful_rows(text: str, rows: Sequence[Row], delimiter: str) -> list[int]:
    """Lines on which rows of a csv begin that go over several lines, each of which could be a row itself.

    A text that begins with a quotation mark and a later one that ends with one look like this, as do letters.
    """
    lines, width = _lines(text), len(rows[0][1])
    ends = [*(line for line, _ in rows[1:]), len(lines) + 1]
    found = []
    for (line, _), end in zip(rows, ends, strict=True):
        parts = [part for part in lines[line - 1 : end - 1] if part.strip()]
        if len(parts) > 1 and width > 1 and all(part.count(delimiter) == width - 1 for part in parts):
            found.append(line)
    return found


def tsv_rows(text: str, where: str) -> list[Row]:
    """Rows of a tsv; the first is the header. Blank lines are left out.

    A quotation mark is a part of the text, unless the whole file is quoted consistently: every cell has none, or is in
    quotation marks with doubled ones within; and in each column all cells are in quotation marks, or only those that
    need them, for they hold a tab, a line break, a comma, a semicolon or a quotation mark.

    Raises:
        ValueError: a row of another length, or both ways of reading fit and differ in their rows.
    """
    plain: list[Row] | None = None
    try:
        plain = _same_length(_split_lines(text), where, "\t")
    except ValueError:
        if '"' not in text or (quoted := _quoted_rows(text, where)) is None:
            raise
        return quoted[0]
    if '"' not in text or (quoted := _quoted_rows(text, where)) is None or not quoted[1]:
        return plain
    rows = quoted[0]
    if len(rows) != len(plain):
        line = next(a[0] for a, b in zip(rows, [*rows[1:], (0, [])], strict=True) if b[0] != a[0] + 1)
        raise ValueError(
            f"{where}, line {line}: a quotation mark opens a cell that may go on to the next lines, or is a part of "
            "the text; put all texts in quotation marks, or save the table as jsonl"
        )
    return rows


def _lines(text: str) -> list[str]:
    """Lines with their ends. Files of old spreadsheets end them with a carriage return alone."""
    end = "\n" if "\n" in text else "\r"
    lines = text.split(end)
    return [line + end for line in lines[:-1]] + lines[-1:]


def _records(text: str, delimiter: str, where: str, skip: int = 0) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    reader = csv.reader(_lines(text)[skip:], delimiter=delimiter, strict=True)
    begin = skip + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where}, line {begin}: {_explained(str(error), skip + reader.line_num)}") from error
        yield begin, cells
        begin = skip + reader.line_num + 1


def _explained(error: str, line: int) -> str:
    rule = 'a text with quotation marks has to be in quotation marks, with those within doubled: "say ""hi"""'
    if "unexpected end" in error:
        return f"a quotation mark opens a cell and is never closed; {rule}"
    if "new-line character" in error:
        return "a carriage return within a cell; put the cell in quotation marks"
    return f"text behind the quotation mark that closes a cell on line {line}; {rule}"


def _split_lines(text: str) -> Iterator[Row]:
    end = "\n" if "\n" in text else "\r"
    for number, line in enumerate(text.split(end), 1):
        cells = line.removesuffix("\r").split("\t")
        yield number, cells if cells != [""] else []


def _same_length(rows: Iterator[Row], where: str, delimiter: str) -> list[Row]:
    """The rows that are not blank; all as long as the first."""
    kept: list[Row] = []
    width = 0
    for line, cells in rows:
        if not cells or (len(cells) == 1 and width != 1 and not cells[0].strip()):
            continue
        width = width or len(cells)
        if len(cells) != width:
            columns, shown = ", ".join(kept[0][1]), delimiter.join(cells)
            raise ValueError(
                f"{where}, line {line}: {len(cells)} cells, expected {width} ({_short(columns)}): {_short(shown)!r}; "
                f"{_way_out(delimiter)}"
            )
        kept.append((line, cells))
    return kept


def _way_out(delimiter: str) -> str:
    if delimiter == "\t":
        return "put a tab or line break within a text as a space, or save the table as jsonl"
    return f'put a text with {DELIMITERS[delimiter]} in quotation marks ("), or save the table as jsonl'


def _short(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."


def _quoted_rows(text: str, where: str) -> tuple[list[Row], bool] | None:
    """Rows of a tsv with quotation marks, and whether they are used consistently; None when it is none."""
    rows: list[tuple[int, list[re.Match[str]]]] = [(1, [])]
    at, line = 0, 1
    while at < len(text):
        cell = _CELL.match(text, at)
        if cell is None:
            return None
        rows[-1][1].append(cell)
        line += cell[0].count("\n")
        if cell[3] not in ("\t", ""):
            rows.append((line, []))
        elif not cell[3]:
            break
        at = cell.end()
    try:
        found = _same_length(((n, [_value(c) for c in cells]) for n, cells in rows), where, "\t")
    except ValueError:
        return None
    kept = {n for n, _ in found[1:]}
    columns = zip(*(cells for n, cells in rows if n in kept), strict=True)
    return found, all(map(_is_consistent, columns))


def _value(cell: re.Match[str]) -> str:
    return cell[2] if cell[1] is None else cell[1].replace('""', '"')


def _is_consistent(cells: Sequence[re.Match[str]]) -> bool:
    every: Callable[[re.Match[str]], bool] = lambda c: c[1] is not None or not c[2]  # noqa: E731
    return all(map(every, cells)) or all(c[1] is None or _NEEDS_QUOTES.search(c[1]) for c in cells)
