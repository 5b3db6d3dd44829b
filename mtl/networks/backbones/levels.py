"""Levels: blocks of the features that were read at one depth of a network in one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LevelKind = Literal["own", "mean", "std", "grid", "token"]


@dataclass(frozen=True)
class Level:
    """A block of the features: the numbers that were read at one depth in one way.

    Args:
        name: for tables and messages, ``"blocks.3 mean"``.
        kind: ``"own"`` for the network's own pooled features; ``"mean"`` and ``"std"`` over positions; ``"grid"`` for
            means over the cells of a grid; ``"token"`` for one token.
        stage: index of the stage that it was read after.
        depth: 0 at the input, 1 at the last layer.
        width: numbers in the block.
        cells: 1, or 4 or 16 for a grid; numbers are ordered by channel first, ``channel * cells + cell``.
    """

    name: str
    kind: LevelKind
    stage: int
    depth: float
    width: int
    cells: int = 1
