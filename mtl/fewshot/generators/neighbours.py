"""Which numbers of a readout belong together: several of one channel of the network, or of one place in the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Neighbourhood = Callable[[Tensor], Tensor]
"""Averages ``(tasks, channels, k)`` over the neighbours of every channel, itself included; the shape stays."""


@dataclass(frozen=True)
class Block:
    """A site of the network or a level of the features, as the channel-wise generator sees it.

    Args:
        kind: that of the level, or ``"site"``.
        stage: levels of one stage have the same channels in the same order.
        depth: 0 at the input, 1 at the last layer.
        width: numbers.
        cells: of a grid; number ``i`` is cell ``i % cells`` of channel ``i // cells``.
    """

    kind: str
    stage: int
    depth: float
    width: int
    cells: int = 1


def neighbourhoods_of(blocks: Sequence[Block]) -> list[Neighbourhood]:
    """Three: the numbers that one channel of a stage has in all its levels; its cells in one grid; and all channels of
    a level at one place."""
    return [partial(average, tuple(blocks)) for average in (_of_channel, _over_cells, _at_place)]


def _of_channel(blocks: Sequence[Block], values: Tensor) -> Tensor:
    parts = _by_block(blocks, values)
    groups: dict[tuple[int, int], list[Tensor]] = {}
    keys = [(b.stage, b.width // b.cells) for b in blocks]
    for key, part in zip(keys, parts, strict=True):
        groups.setdefault(key, []).append(part)
    means = {key: torch.cat(group, 2).mean(2, keepdim=True) for key, group in groups.items()}
    return _joined([means[key] for key in keys], parts)


def _over_cells(blocks: Sequence[Block], values: Tensor) -> Tensor:
    parts = _by_block(blocks, values)
    return _joined([part.mean(2, keepdim=True) for part in parts], parts)


def _at_place(blocks: Sequence[Block], values: Tensor) -> Tensor:
    parts = _by_block(blocks, values)
    return _joined([part.mean(1, keepdim=True) for part in parts], parts)


def _by_block(blocks: Sequence[Block], values: Tensor) -> list[Tensor]:
    parts = values.split([b.width for b in blocks], 1)
    return [part.unflatten(1, (-1, b.cells)) for part, b in zip(parts, blocks, strict=True)]


def _joined(averages: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([a.expand_as(x).flatten(1, 2) for a, x in zip(averages, like, strict=True)], 1)
