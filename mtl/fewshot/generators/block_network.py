"""The network that all sites and levels share: from what is read of each to a few numbers of it, and of the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.channel_network import SHOTS, START, ByIndex, ByPlace
from mtl.fewshot.generators.channel_statistics import EVIDENCE, STATISTICS
from mtl.fewshot.generators.neighbours import Block
from mtl.fewshot.generators.standardising import level_means


class BlockNetwork(nn.Module):
    """Numbers of every site and level, and numbers of the task, from what a support set shows of all of them.

    Starts next to the values that it is given, whatever it reads.

    Args:
        blocks: sites and levels in order.
        of_block: initial values of the numbers of a block.
        of_task: initial values of the numbers of a task.
        hidden: width of the hidden layers.
        by_index: tell blocks apart by a vector of their own too, which ties the weights to these blocks.
        size: of the vectors that describe a block.
    """

    level: Tensor

    def __init__(
        self,
        blocks: Sequence[Block],
        of_block: Sequence[float],
        of_task: Sequence[float],
        hidden: int = 48,
        by_index: bool = False,
        size: int = 12,
    ) -> None:
        super().__init__()
        self.blocks = len(blocks)
        self.by_place = ByPlace(blocks, size)
        self.by_index = ByIndex(self.blocks, size) if by_index else None
        read = STATISTICS + EVIDENCE + SHOTS + size * (2 if by_index else 1)
        self.of_level = nn.Sequential(nn.Linear(read, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.block = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.GELU(), _starting_at(of_block, hidden))
        self.task = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), _starting_at(of_task, hidden))
        level = torch.repeat_interleave(torch.arange(self.blocks), torch.tensor([b.width for b in blocks]))
        self.register_buffer("level", level, persistent=False)

    def forward(self, statistics: Tensor, evidence: Tensor, shots: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of every block, ``(tasks, blocks, k)``, and of every task, ``(tasks, m)``.

        Args:
            statistics: of every channel, ``(tasks, channels, 6)``.
            evidence: of every block, ``(tasks, blocks, 3)``.
            shots: examples of the smallest and of a typical class, ``(tasks, 2)``.
        """
        places = [self.by_place()] if self.by_index is None else [self.by_place(), self.by_index()]
        described = [p.expand(len(statistics), -1, -1) for p in places]
        pooled = level_means(statistics, self.level, self.blocks)
        counts = shots.log().unsqueeze(1).expand(-1, self.blocks, -1)
        own = self.of_level(torch.cat([pooled, evidence, counts, *described], -1))
        task = own.mean(1)
        both = torch.cat([own, task.unsqueeze(1).expand_as(own)], -1)
        return self.block(both), self.task(task)


def _starting_at(values: Sequence[float], width: int) -> nn.Linear:
    layer = nn.Linear(width, len(values))
    nn.init.normal_(layer.weight, std=START)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(values))
    return layer
