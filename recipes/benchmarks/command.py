"""The command line of a benchmark: that of the recipes."""

from __future__ import annotations

from mtl.cli.answers import answer
from mtl.cli.options import (
    Checked,
    Count,
    CountOrZero,
    Counts,
    Device,
    Folder,
    OneOf,
    Positive,
    PositiveOrZero,
    Positives,
    Seed,
    TwoOrMore,
)

__all__ = [
    "Checked",
    "Count",
    "CountOrZero",
    "Counts",
    "Device",
    "Folder",
    "OneOf",
    "Positive",
    "PositiveOrZero",
    "Positives",
    "Seed",
    "TwoOrMore",
    "answer",
]
