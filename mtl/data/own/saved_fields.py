"""Fields of saved splits, of the type that they should have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def strings_of(stored: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings of a saved split.

    Raises:
        TypeError: it is none.
    """
    value = stored[key]
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{key!r} is no list of strings")
    return tuple(value)


def seed_of(stored: Mapping[str, Any]) -> int:
    """The seed of a saved split.

    Raises:
        TypeError: it is no integer.
    """
    if type(stored["seed"]) is not int:
        raise TypeError("'seed' is no integer")
    return stored["seed"]


def fractions_of(stored: Mapping[str, Any]) -> tuple[float, float, float]:
    """The fractions of a saved split.

    Raises:
        TypeError: they are not three numbers.
    """
    value = stored["fractions"]
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise TypeError("'fractions' are not three numbers")
    return tuple(value)
