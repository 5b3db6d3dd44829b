r"""What and where to transfer: meta-networks that read a source's features and weigh what a target is to match.

After "Learning What and Where to Transfer" (arXiv 1905.05901). For a pair of a source stage :math:`m` and a target
stage :math:`n`, and the source's features :math:`S^m(x)` of an example,

.. math::

    \lambda^{m,n} = \mathrm{relu6}(a^{m,n} \cdot \overline{S^m(x)} + b^{m,n}), \qquad
    w^{m,n} = \mathrm{softmax}(A^{m,n} \overline{S^m(x)} + c^{m,n}),

where the bar is the mean over places. All weights start at zero but for :math:`b = 1`, so training starts where a hand
would: every pair counts one, every channel alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Choice:
    """What a minibatch is to match.

    Args:
        where: ``(n, sources, targets)``, the weight of each pair of stages, 0 .. 6.
        what: for each source stage ``(n, targets, C)``, weights of its channels that add up to one.
    """

    where: Tensor
    what: list[Tensor]


class MatchingWeights(nn.Module):
    """The meta-networks of all pairs of stages.

    Args:
        channels: of each source stage.
        targets: number of target stages.

    Raises:
        ValueError: without a stage on either side.
    """

    def __init__(self, channels: Sequence[int], targets: int) -> None:
        super().__init__()
        if not channels or targets < 1:
            raise ValueError(
                f"MatchingWeights({list(channels)}, {targets}): a source and a target need a stage at least"
            )
        self.targets = targets
        self.where = nn.ModuleList(_constant(c, targets, bias=1.0) for c in channels)
        self.what = nn.ModuleList(_constant(c, targets * c, bias=0.0) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> Choice:
        """Weights for the source's maps ``(n, C, H, W)``, stage by stage."""
        pooled = [m.mean((2, 3)) for m in maps]
        where = torch.stack([F.relu6(layer(p)) for layer, p in zip(self.where, pooled, strict=True)], 1)
        logits = [layer(p).unflatten(1, (self.targets, -1)) for layer, p in zip(self.what, pooled, strict=True)]
        return Choice(where, [per_stage.softmax(2) for per_stage in logits])


def _constant(inputs: int, outputs: int, bias: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer
