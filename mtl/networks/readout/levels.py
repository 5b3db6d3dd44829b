"""Levels of a readout: which numbers of the features come from which stage of the network, and which stages count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["own", "mean", "std", "grid", "token"]
Choice = Literal["last", "all"] | Sequence[int]
MANY_STAGES = 10


@dataclass(frozen=True)
class Level:
    """A block of numbers in the features: one statistic of one stage.

    Args:
        name: of the stage and the statistic, ``"blocks.3 mean"``; of the grids ``"blocks.3 grid 2x2"``.
        kind: ``mean`` and ``std`` over positions; ``grid``, means over the cells of a 2x2 or 4x4 grid of an image;
            ``token``, a single one: the class token, or the last token of a causal network; ``own``, what the network
            itself pools.
        stage: index among the stages of the network, input first.
        depth: from 0 (input) to 1 (the last stage).
        width: numbers in the block.
        cells: of a grid 4 or 16, else 1. Number ``i`` of the block is cell ``i % cells`` of channel ``i // cells``;
            cells go row by row.
    """

    name: str
    kind: Kind
    stage: int
    depth: float
    width: int
    cells: int = 1


def check_choice(levels: Choice) -> Choice:
    """The choice as JSON gives it back: a word, or a list of indices.

    Raises:
        ValueError: anything else.
    """
    if isinstance(levels, str):
        if levels in ("last", "all"):
            return levels
    elif all(isinstance(i, int) and not isinstance(i, bool) for i in levels):
        return [int(i) for i in levels]
    raise ValueError(f"levels={levels!r}: expected 'last', 'all' or a list of stage indices such as [0, 3, 6]")


def chosen_stages(levels: Choice, names: Sequence[str]) -> list[int]:
    """Indices of the stages to read, in order.

    Args:
        levels: ``"all"`` takes every stage when there are at most ten. When there are more it takes every second, third
            and so on, so that about eight remain, always with the first and the last.
        names: of all stages.

    Raises:
        ValueError: an index that there is not.

    >>> chosen_stages("all", ["stage"] * 31)
    [0, 5, 10, 15, 20, 25, 30]
    """
    last = len(names) - 1
    if levels == "all":
        step = 1 if len(names) <= MANY_STAGES else -(-last // 7)
        return sorted({*range(0, len(names), step), last})
    if wrong := [i for i in levels if isinstance(i, int) and not 0 <= i <= last]:
        known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise ValueError(f"levels={list(levels)}: no stage {wrong[0]}; this network has {known}")
    return sorted({int(i) for i in levels})
