"""Sizes of episodes that are fixed, or drawn anew for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

IntOrRange = int | tuple[int, int]
"""A number, or an inclusive range ``(low, high)`` from which each episode draws its own."""


def as_range(name: str, value: IntOrRange, least: int) -> tuple[int, int]:
    """``(low, high)``, both included; of a number both are that number.

    >>> as_range("ways", 5, least=2), as_range("shots", (1, 5), least=1)
    ((5, 5), (1, 5))

    Raises:
        ValueError: calling it ``name``, when it is empty or starts below ``least``.
    """
    pair = value if isinstance(value, Sequence) else (value, value)
    whole = len(pair) == 2 and all(isinstance(v, Integral) for v in pair)
    if not (whole and least <= pair[0] <= pair[1]):
        raise ValueError(
            f"{name}={value!r}: expected an integer of at least {least}, or (low, high) with {least} <= low <= high"
        )
    return int(pair[0]), int(pair[1])


def at_least(least: int, name: str, value: int) -> int:
    """Return the value if it is an integer of at least ``least``, else raise a ValueError."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    return int(value)
