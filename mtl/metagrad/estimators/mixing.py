"""Exact sweeps with other weights: over the horizons judged, or over the steps credited."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, MetaGradient, exact_sweep, outer_adjoint, through_init
from mtl.metagrad.problem import InnerProblem, unroll
from mtl.metagrad.products import Adjoint, PullChoice, as_pull
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class HorizonMixing(AbstractEstimator):
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

    Raises:
        ValueError: when ``decay`` is outside its range.
    """

    decay: float = 0.5
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        _check("HorizonMixing", self.decay)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = unroll(problem, meta)
        losses, adjoint = outer_adjoint(problem, meta, trajectory)
        total = sum(self.decay**j for j in range(max(1, problem.num_steps)))
        adjoint = _scaled(adjoint, 1 / total)
        for step in range(problem.num_steps - 1, -1, -1):
            adjoint = exact_sweep(problem, meta, trajectory, adjoint, [step], as_pull(self.pull))
            if step and (share := self.decay ** (problem.num_steps - step) / total):
                _, here = outer_adjoint(problem, meta, trajectory, step)
                adjoint = _sum(adjoint, _scaled(here, share))
        grads = through_init(problem, meta, adjoint)
        return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, problem.num_steps)


@dataclass(frozen=True)
class TruncationMixing(AbstractEstimator):
    r"""Credit late inner steps more than early ones.

    .. math:: \text{acc} \mathrel{-}= \text{decay}^{K-1-k} \alpha M_k \lambda, \qquad
              \lambda \mathrel{-}= \alpha H_k \lambda

    The expectation over truncations of random length, had each kept the exact cotangent (the idea of arXiv 2111.00206,
    which mixes estimators of different horizons). Learned step sizes are weighted as well; the initial weights are not.

    Cost: K gradients and K pulls; memory of one step.
    Equals: :class:`mtl.Exact` for ``decay=1``; on the initial weights for any.

    Args:
        decay: in ``[0, 1]``.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when ``decay`` is outside its range.
    """

    decay: float = 0.9
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        _check("TruncationMixing", self.decay)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = unroll(problem, meta)
        losses, adjoint = outer_adjoint(problem, meta, trajectory)
        for step in range(problem.num_steps - 1, -1, -1):
            credit = self.decay ** (problem.num_steps - 1 - step)
            before = adjoint.meta
            adjoint = exact_sweep(problem, meta, trajectory, adjoint, [step], as_pull(self.pull))
            gained = tensors.add(adjoint.meta, before, -1.0)
            adjoint = Adjoint(adjoint.weights, adjoint.state, tensors.add(before, gained, credit))
        grads = through_init(problem, meta, adjoint)
        return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, problem.num_steps)


def _check(name: str, decay: float) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"{name}(decay={decay}): expected a number from 0 (the last step only) to 1 (all alike)")


def _scaled(adjoint: Adjoint, factor: float) -> Adjoint:
    times = lambda group: {k: v * factor for k, v in group.items()}  # noqa: E731
    return Adjoint(times(adjoint.weights), times(adjoint.state), times(adjoint.meta))


def _sum(a: Adjoint, b: Adjoint) -> Adjoint:
    return Adjoint(tensors.add(a.weights, b.weights), tensors.add(a.state, b.state), tensors.add(a.meta, b.meta))
