r"""What and where to transfer: meta-networks from a source's features to the weights of a matching loss.

After "Learning What and Where to Transfer" (arXiv 1905.05901). For a pair of a source stage :math:`m` and a target
stage :math:`n`, and the source's features :math:`S^m(x)` of an example,

.. math::

    \lambda^{m,n} = \mathrm{relu6}(a^{m,n} \cdot \overline{S^m(x)} + b^{m,n}), \qquad
    w^{m,n} = \mathrm{softmax}(A^{m,n} \overline{S^m(x)} + c^{m,n}),

where the bar is the mean over places. All weights start at zero except :math:`b = 1`, so that initially
every pair has weight one, and all channels count equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PairWeights:
    """Weights of the matching loss for a minibatch.

    Args:
        where: ``(n, sources, targets)``, weight of each pair of stages, 0 .. 6.
        what: per source stage ``(n, targets, C)``, weights of its channels that sum to one.
    """

    where: Tensor
    what: list[Tensor]


class MatchingWeights(nn.Module):
    """The meta-networks of all pairs of stages.

    Args:
        channels: channels of each source stage.
        targets: number of target stages.

    Raises:
        ValueError: no source stage, or no target stage.
    """

    def __init__(self, channels: Sequence[int], targets: int) -> None:
        super().__init__()
        if not channels or targets < 1:
            raise ValueError(f"MatchingWeights({list(channels)}, {targets}): expected at least one stage each")
        self.targets = targets
        self.where = nn.ModuleList(_constant(c, targets, bias=1.0) for c in channels)
        self.what = nn.ModuleList(_constant(c, targets * c, bias=0.0) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> PairWeights:
        """Weights for a source's maps ``(n, C, H, W)``, one per stage."""
        pooled = [m.mean((2, 3)) for m in maps]
        where = torch.stack([F.relu6(layer(p)) for layer, p in zip(self.where, pooled, strict=True)], 1)
        logits = [layer(p).unflatten(1, (self.targets, -1)) for layer, p in zip(self.what, pooled, strict=True)]
        return PairWeights(where, [per_stage.softmax(2) for per_stage in logits])


def _constant(inputs: int, outputs: int, bias: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer
