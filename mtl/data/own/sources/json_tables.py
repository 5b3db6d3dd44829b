"""Rows of jsonl files and of JSON arrays; a damaged one is named by its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_rows(text: str, where: str) -> list[Row]:
    """Objects of an array, or one per line; NaN and infinities, which are not JSON, count as null.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: with the line that is not JSON, not an object, or repeats a key.
    """
    rows = _array(text, where) if text.lstrip().startswith("[") else _lines(text, where)
    _check_characters(rows, text, where)
    return rows


def _lines(text: str, where: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line.strip():
            row = _parsed(line, f"{where}, line {number}", "one object per line")
            rows.append(_object(row, f"{where}, line {number}", "an object per line"))
    return rows


def _array(text: str, where: str) -> list[Row]:
    try:
        values = _loads(text)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        if len(lines) > 1 and _is_json(lines[0]):  # a jsonl of lists, which no other message fits
            raise ValueError(f"{where}, line 1 is a list; expected an object per line") from error
        raise ValueError(f"{where}, line {error.lineno} is not JSON ({error}); expected a list of objects") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not a table in JSON ({_one_line(error)}); expected a list of objects") from error
    return [
        _object(value, f"{where}, entry {i} (counted from 0)", "a list of objects") for i, value in enumerate(values)
    ]


def _parsed(text: str, where: str, expected: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({_one_line(error)}); expected {expected}") from error


def _is_json(text: str) -> bool:
    try:
        _loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=_unique)


def _unique(pairs: Iterable[tuple[str, Any]]) -> Row:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return found


def _object(value: Any, where: str, expected: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; expected {expected}")
    return value


def _check_characters(rows: Sequence[Row], text: str, where: str) -> None:
    if not _SURROGATE.search(text):
        return
    for number, row in enumerate(rows, 1):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}, object {number} holds half of a surrogate pair, which is no character; remove it"
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
