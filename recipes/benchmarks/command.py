"""The command line of a benchmark: that of the recipes, whose modules are one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.answers import answer
from helpers.options import (
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
