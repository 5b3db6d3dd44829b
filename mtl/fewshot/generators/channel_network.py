"""The network that all channels of all levels share: from what is read of a channel to its scale and shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.channel_statistics import STATISTICS
from mtl.fewshot.generators.standardising import level_means

KINDS = ("own", "mean", "std", "grid", "token", "site")
START = 1e-3  # standard deviation of the last layer: next to the identity, and a gradient for every weight


@dataclass(frozen=True)
class Block:
    """A site of the network or a level of the features, as the generator sees it.

    Args:
        kind: that of the level, or ``"site"``.
        depth: 0 at the input, 1 at the last layer.
        width: channels.
        cells: of a grid.
    """

    kind: str
    depth: float
    width: int
    cells: int = 1


class ChannelNetwork(nn.Module):
    """A small network shared by all channels, whose weights belong to no channel.

    Args:
        blocks: sites and levels in order.
        hidden: width of the two hidden layers.
        by_index: tell blocks apart by a vector of their own, which ties the weights to these blocks; otherwise by their
            depth and kind.
        size: of the vectors that describe a block.
        task: size of the task vector.
    """

    level: Tensor

    def __init__(
        self, blocks: Sequence[Block], hidden: int = 48, by_index: bool = False, size: int = 12, task: int = 24
    ) -> None:
        super().__init__()
        self.blocks = len(blocks)
        self.describe = ByIndex(self.blocks, size) if by_index else ByPlace(blocks, size)
        self.task = nn.Sequential(nn.Linear(STATISTICS + 1 + size, 64), nn.GELU(), nn.Linear(64, task))
        self.of_channel = nn.Linear(STATISTICS, hidden)
        self.of_block = nn.Linear(size + task + 1, hidden, bias=False)
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 2))
        nn.init.normal_(self.layers.get_parameter("3.weight"), std=START)
        nn.init.zeros_(self.layers.get_parameter("3.bias"))
        level = torch.repeat_interleave(torch.arange(self.blocks), torch.tensor([b.width for b in blocks]))
        self.register_buffer("level", level, persistent=False)

    def forward(self, statistics: Tensor, evidence: Tensor) -> Tensor:
        """Log-scale and shift of every channel.

        Args:
            statistics: ``(tasks, channels, 6)``.
            evidence: of every block, ``(tasks, blocks)``.

        Returns:
            ``(tasks, channels, 2)``.
        """
        tasks, evidence = len(statistics), evidence.unsqueeze(-1)
        described = self.describe().expand(tasks, -1, -1)
        pooled = level_means(statistics, self.level, self.blocks)
        task = self.task(torch.cat([pooled, evidence, described], -1)).mean(1, keepdim=True)
        context = self.of_block(torch.cat([described, task.expand(-1, self.blocks, -1), evidence], -1))
        return self.layers(self.of_channel(statistics) + context[:, self.level])


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
