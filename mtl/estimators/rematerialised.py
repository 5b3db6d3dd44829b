"""Exact meta-gradient in the memory of one inner step."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.estimators.base import AbstractEstimator, MetaGradient, exact_sweep, outer_adjoint, through_init
from mtl.inner import InnerProblem, run
from mtl.pulls import AbstractPull, as_pull
from mtl.tensors import Tensors


@dataclass(frozen=True)
class Rematerialised(AbstractEstimator):
    r"""Remember only the fast weights, rebuild one step's graph at a time on the way back.

    .. math::

        \text{acc} \mathrel{-}= \alpha M_k \lambda, \qquad \lambda \mathrel{-}= \alpha H_k \lambda, \qquad
        k = K-1, \dots, 0

    Cost: K gradients and K pulls; peak memory is that of one step, for any K.
    Equals: :class:`mtl.Exact` to rounding.

    Args:
        pull: ``"reverse"`` (exact) or ``"finite-difference"``, or an instance of a pull.
    """

    pull: str | AbstractPull = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = run(problem, meta)
        losses, adjoint = outer_adjoint(problem, meta, trajectory)
        steps = range(problem.num_steps - 1, -1, -1)
        adjoint = exact_sweep(problem, meta, trajectory, adjoint, steps, as_pull(self.pull))
        grads = through_init(problem, meta, adjoint)
        return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, problem.num_steps)
