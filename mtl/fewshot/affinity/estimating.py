"""What training on some families would do to all of them, estimated without training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.affinity.linearising import Linearised

STEPS = 8  # of Newton's method, at most
ENOUGH = 1e-4  # of the gradient's length at the start
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the mean square of the gradients


def fit(examples: Linearised, penalty: float, *, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """The change that logistic regression finds, by Newton's method.

    It minimises the mean of ``weights * log(1 + exp(-labels * margin))`` plus ``penalty / 2`` times the squared length
    of the change.

    Args:
        examples: margins, which are the offsets of the regression, and gradients ``(n, d)``.
        penalty: above 0.
        labels: ``(n,)`` of 1 and -1; 1 where not given. In reinforcement learning the sign of the advantage, with
            gradients of the log-probability of the action.
        weights: ``(n,)``, at least 0; 1 where not given. There the size of the advantage.

    Returns:
        ``(d,)``.
    """
    sign = torch.ones_like(examples.margins) if labels is None else labels.to(examples.margins)
    share = (torch.ones_like(sign) if weights is None else weights.to(sign)) / len(sign)
    gradients = examples.gradients
    change, first = gradients.new_zeros(gradients.shape[1]), None
    for _ in range(STEPS):
        wrong = torch.sigmoid(-sign * examples.after(change))
        slope = penalty * change - gradients.mT @ (share * sign * wrong)
        first = float(slope.norm()) if first is None else first
        if float(slope.norm()) <= ENOUGH * first:
            break
        bend = gradients.mT @ (gradients * (share * wrong * (1 - wrong)).unsqueeze(1))
        bend.diagonal().add_(penalty)
        step = torch.cholesky_solve(slope.unsqueeze(1), torch.linalg.cholesky(bend)).squeeze(1)
        change = change - _length(examples, change, step, slope, sign, share, penalty) * step
    return change


def _length(
    examples: Linearised, change: Tensor, step: Tensor, slope: Tensor, sign: Tensor, share: Tensor, penalty: float
) -> float:
    """How far to go: all of Newton's step, halved until the loss falls by a part of what the slope promises."""

    def loss(at: Tensor) -> float:
        return float((share * F.softplus(-sign * examples.after(at))).sum() + penalty / 2 * at.square().sum())

    length, before, promised = 1.0, loss(change), float(slope @ step)
    while length > 1e-3 and loss(change - length * step) > before - 1e-4 * length * promised:
        length /= 2
    return length


@dataclass(frozen=True)
class SubsetEstimator:
    """Losses after training on any subset of families, by logistic regression on projected gradients.

    Args:
        fitted: by family, the examples that training would see.
        judged: by family, others, on which losses are estimated; more families than are trained on, where some are new.
        penalty: see :func:`fit`.
    """

    fitted: Mapping[str, Linearised]
    judged: Mapping[str, Linearised]
    penalty: float

    def change(self, families: Collection[str]) -> Tensor:
        """The change ``(d,)`` that training on these families is estimated to make."""
        return fit(Linearised.cat([self.fitted[name] for name in families]), self.penalty)

    def losses(self, families: Collection[str]) -> dict[str, float]:
        """Mean cross-entropy of every judged family after training on these."""
        change = self.change(families)
        return {name: float(F.softplus(-examples.after(change)).mean()) for name, examples in self.judged.items()}


def choose_penalty(
    fitted: Mapping[str, Linearised], judged: Mapping[str, Linearised], subsets: Sequence[Collection[str]]
) -> float:
    """The penalty with which subsets do best on other examples of their own families."""
    size = float(torch.cat([f.gradients for f in fitted.values()]).square().sum(1).mean())

    def loss(penalty: float) -> float:
        estimator = SubsetEstimator(fitted, judged, penalty)
        found = [(estimator.losses(subset), subset) for subset in subsets]
        return sum(losses[name] for losses, subset in found for name in subset)

    return min((size * factor for factor in PENALTIES), key=loss)
