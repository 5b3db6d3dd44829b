"""The network that all channels of all levels share: from what is read of a channel to its scale and shift."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.channel_statistics import EVIDENCE, NEIGHBOURS, STATISTICS, neighbour_statistics
from mtl.fewshot.generators.neighbours import Block, neighbourhoods_of
from mtl.fewshot.generators.standardising import level_means

KINDS = ("own", "mean", "std", "grid", "token", "site")
SHOTS = 2  # numbers that say how many examples a class has
START = 1e-3  # standard deviation of the last layer: next to the identity, and a gradient for every weight


class ChannelNetwork(nn.Module):
    """A small network shared by all channels, whose weights belong to no channel.

    Args:
        blocks: sites and levels in order.
        hidden: width of the two hidden layers.
        by_index: tell blocks apart by a vector of their own too, which ties the weights to these blocks, and not by
            depth and kind alone.
        size: of the vectors that describe a block.
        task: size of the task vector.
    """

    level: Tensor
    widths: Tensor

    def __init__(
        self, blocks: Sequence[Block], hidden: int = 48, by_index: bool = False, size: int = 12, task: int = 24
    ) -> None:
        super().__init__()
        self.blocks, self.neighbourhoods = len(blocks), neighbourhoods_of(blocks)
        self.by_place = ByPlace(blocks, size)
        self.by_index = ByIndex(self.blocks, size) if by_index else None
        block = STATISTICS + EVIDENCE + SHOTS + size * (2 if by_index else 1)
        self.of_level = nn.Sequential(nn.Linear(block, 64), nn.GELU(), nn.Linear(64, 32))
        self.task = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, task))
        self.of_channel = nn.Linear(STATISTICS + NEIGHBOURS, hidden)
        self.of_block = nn.Linear(block + task, hidden, bias=False)
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 2))
        nn.init.normal_(self.layers.get_parameter("3.weight"), std=START)
        nn.init.zeros_(self.layers.get_parameter("3.bias"))
        widths = torch.tensor([b.width for b in blocks])
        self.register_buffer("widths", widths, persistent=False)
        self.register_buffer("level", torch.repeat_interleave(torch.arange(self.blocks), widths), persistent=False)

    def forward(self, statistics: Tensor, evidence: Tensor, shots: Tensor) -> Tensor:
        """Log-scale and shift of every channel.

        Args:
            statistics: ``(tasks, channels, 6)``.
            evidence: of every block, ``(tasks, blocks, 3)``.
            shots: examples of the smallest and of a typical class, ``(tasks, 2)``.

        Returns:
            ``(tasks, channels, 2)``.
        """
        places = [self.by_place()] if self.by_index is None else [self.by_place(), self.by_index()]
        described = torch.cat([*(p.expand(len(statistics), -1, -1) for p in places)], -1)
        pooled = level_means(statistics, self.level, self.blocks)
        counts = shots.log().unsqueeze(1).expand(-1, self.blocks, -1)
        block = torch.cat([pooled, evidence, counts, described], -1)
        task = self.task(self.of_level(block).mean(1, keepdim=True)).expand(-1, self.blocks, -1)
        context = self.of_block(torch.cat([block, task], -1))
        read = torch.cat([statistics, neighbour_statistics(statistics, self.neighbourhoods)], -1)
        of_block = context.repeat_interleave(self.widths, 1, output_size=len(self.level))  # way back: no index_put
        return self.layers(self.of_channel(read) + of_block)


class ByIndex(nn.Module):
    """A learned vector for every block: ``(blocks, size)``."""

    def __init__(self, blocks: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(blocks, size)

    def forward(self) -> Tensor:
        return self.embedding.weight


class ByPlace(nn.Module):
    """A vector ``(blocks, size)`` computed from the depth and kind of each block, the same for any network."""

    places: Tensor

    def __init__(self, blocks: Sequence[Block], size: int) -> None:
        super().__init__()
        kinds = [[float(b.kind == kind) for kind in KINDS] for b in blocks]
        places = [[*kind, b.depth, math.log2(b.cells) / 4] for kind, b in zip(kinds, blocks, strict=True)]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.layers = nn.Sequential(nn.Linear(len(KINDS) + 2, 32), nn.GELU(), nn.Linear(32, size))

    def forward(self) -> Tensor:
        return self.layers(self.places)
