"""Read JSON that somebody else may have written, and say in one line what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number", type(None): "null"}


def read_json(path: str | Path, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        fields: types of entries that must be there; ``"inner.optimizer"`` is one inside another.

    Raises:
        ValueError: naming the file and the place: it is not JSON, holds no object, or an entry is missing or has
            another type.
        OSError: it cannot be read.
    """
    content = parse_json(Path(path).read_bytes(), path)
    check_fields(content, path, fields or {})
    return content


def parse_json(contents: bytes, path: str | Path) -> dict[str, Any]:
    """The same of the bytes of a file."""
    way_out = "bring the file back from a copy"
    try:
        found = json.loads(contents.decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path} is damaged: no JSON at {where} ({error.msg}); {way_out}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: no UTF-8 at byte {error.start:,}; {way_out}") from error
    except RecursionError as error:  # thousands of brackets; its words differ from one Python to the next
        raise ValueError(f"{path} is damaged: no JSON (brackets nested past the recursion limit); {way_out}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path} is damaged: no JSON ({error}); {way_out}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {_name(type(found))}, expected an object; is it the right file?")
    return found


def check_fields(content: Mapping[str, Any], path: str | Path, fields: Mapping[str, type]) -> None:
    """Refuse an object that lacks an entry, or has one of another type; see :func:`read_json`."""
    for name, kind in fields.items():
        found: Any = content
        for key in name.split("."):
            if not isinstance(found, dict) or key not in found:
                raise ValueError(f"{path} lacks {name!r}: it was not written by this package, or is damaged")
            found = found[key]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ValueError(f"{path} has {name!r} = {_short(found)}: expected {_name(kind)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON gave has the type of an annotation; True for a type that JSON has no value of.

    >>> fits(1, float), fits("1", float), fits([0.5, 0.9], tuple[float, float]), fits(None, int | None)
    (True, False, True, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint or type(None))
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    return True


def _name(kind: type) -> str:
    return _NAMES.get(kind, f"a {kind.__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
