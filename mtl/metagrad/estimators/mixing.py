"""Exact sweeps with other weights: over the horizons judged, or over the steps credited."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import MetaGradient, Sweep, outer_adjoint
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class AbstractMixing(AbstractEstimator):
    """A sweep over every step, with weights that decay towards the start.

    Raises:
        ValueError: when ``decay`` is outside ``[0, 1]``.
    """

    decay: float
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(0 <= self.decay <= 1, "decay", "a number from 0 (the last step only) to 1 (all alike)")


@dataclass(frozen=True)
class HorizonMixing(AbstractMixing):
    r"""Judge the weights after every inner step, not only the last.

    .. math:: g = \frac{d}{d\phi} \sum_{i=1}^{K} c_i F(\theta_i), \qquad c_i \propto \text{decay}^{K-i}, \quad
              \sum_i c_i = 1

    by adding :math:`c_i\, \partial F / \partial \theta(\theta_i)` to the cotangent on the way back. With ``decay=1`` it
    is the multi-step loss of MAML++ (arXiv 1810.09502); mixing horizons is an idea of arXiv 2111.00206. The reported
    losses are those after the last step.

    Cost: K gradients, K pulls and K outer gradients; memory of one step.
    Equals: :class:`mtl.Exact` of the weighted sum of outer losses; of the last one for ``decay=0``.

    Args:
        decay: in ``[0, 1]``; how fast the earlier horizons lose weight.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.
    """

    decay: float = 0.5

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        total = sum(self.decay**j for j in range(max(1, problem.num_steps)))
        sweep.adjoint = sweep.adjoint.times(1 / total)
        for step in reversed(range(problem.num_steps)):
            sweep.back(step, step + 1)
            if step and (share := self.decay ** (problem.num_steps - step) / total):
                sweep.release()
                _, here, _ = outer_adjoint(problem, meta, sweep.trajectory, step)
                sweep.adjoint = sweep.adjoint.plus(here.times(share))
        return sweep.finish()


@dataclass(frozen=True)
class TruncationMixing(AbstractMixing):
    r"""Credit late inner steps more than early ones.

    .. math:: \text{acc} \mathrel{-}= \text{decay}^{K-1-k} \alpha M_k \lambda, \qquad
              \lambda \mathrel{-}= \alpha H_k \lambda

    Read as TD(:math:`\lambda`): with :math:`g_n` the meta-gradient through the last n updates alone, it is the
    geometric average :math:`\sum_{n<K} (1-\text{decay})\,\text{decay}^{n-1} g_n + \text{decay}^{K-1} g_K`, as a
    :math:`\lambda`-return averages n-step returns (arXiv 2111.00206, which mixes meta-gradients of one to K updates of
    an agent to trade bias for variance). Learned step sizes are weighted as well; the initial weights are not.

    Cost: K gradients and K pulls; memory of one step.
    Equals: :class:`mtl.Exact` for ``decay=1``; on the initial weights for any.

    Args:
        decay: in ``[0, 1]``.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.
    """

    decay: float = 0.9

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        for step in reversed(range(problem.num_steps)):
            before = sweep.adjoint.meta
            sweep.back(step, step + 1)
            gained = tensors.add(sweep.adjoint.meta, before, -1.0)
            credit = self.decay ** (problem.num_steps - 1 - step)
            sweep.adjoint = replace(sweep.adjoint, meta=tensors.add(before, gained, credit))
        return sweep.finish()
