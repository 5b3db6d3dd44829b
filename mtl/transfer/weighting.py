r"""What and where to transfer: meta-networks from a source's features to the weights of a matching loss.

After "Learning What and Where to Transfer" (arXiv 1905.05901). For a pair of a source stage :math:`m` and a target
stage :math:`n`, and the source's features :math:`S^m(x)` of an example,

.. math::

    \lambda^{m,n} = \mathrm{relu6}(a^{m,n} \cdot \overline{S^m(x)} + b^{m,n}), \qquad
    w^{m,n} = \mathrm{softmax}(A^{m,n} \overline{S^m(x)} + c^{m,n}),

where the bar is the mean over places. All weights start at zero except :math:`b = 1`, so that initially
every pair has weight one, and all channels count equally.

After a few virtual steps more matching nearly always looks better, so :math:`\lambda` drifts upwards, and the total is
learned in place of the pairs. With ``fixed_total`` they are shares of one total, the number of pairs:
:math:`\lambda = M N \, \mathrm{softmax}_{m,n}(a^{m,n} \cdot \overline{S^m(x)} + b^{m,n})`, which starts at one too.
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
        where: ``(n, sources, targets)``, weight of each pair of stages, >= 0.
        what: per source stage ``(n, targets, C)``, weights of its channels that sum to one.
    """

    where: Tensor
    what: list[Tensor]


class MatchingWeights(nn.Module):
    """The meta-networks of all pairs of stages.

    Parameters that require no gradient stay as they are: freeze ``where.*.weight`` and ``what`` for a number per pair.

    Args:
        channels: channels of each source stage.
        targets: number of target stages.
        fixed_total: the weights of an example's pairs are shares of their number; else each is 0 .. 6.

    Raises:
        ValueError: no source stage, or no target stage.
    """

    def __init__(self, channels: Sequence[int], targets: int, fixed_total: bool = False) -> None:
        super().__init__()
        if not channels or targets < 1:
            raise ValueError(f"MatchingWeights({list(channels)}, {targets}): expected at least one stage each")
        self.targets = targets
        self.fixed_total = fixed_total
        self.where = nn.ModuleList(_constant(c, targets, bias=1.0) for c in channels)
        self.what = nn.ModuleList(_constant(c, targets * c, bias=0.0) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> PairWeights:
        """Weights for a source's maps ``(n, C, H, W)``, one per stage."""
        pooled = [m.mean((2, 3)) for m in maps]
        where = torch.stack([layer(p) for layer, p in zip(self.where, pooled, strict=True)], 1)
        where = _shares(where) if self.fixed_total else F.relu6(where)
        logits = [layer(p).unflatten(1, (self.targets, -1)) for layer, p in zip(self.what, pooled, strict=True)]
        return PairWeights(where, [per_stage.softmax(2) for per_stage in logits])


def _shares(logits: Tensor) -> Tensor:
    """Positive weights with a mean of one for each example, from ``(n, sources, targets)``."""
    return logits.flatten(1).softmax(1).view_as(logits) * logits[0].numel()


def _constant(inputs: int, outputs: int, bias: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer
