"""Meta-gradient without second derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad.estimators.base import AbstractEstimator, MetaGradient, outer_adjoint, through_init, warn_of_zeros
from mtl.metagrad.problem import InnerProblem, unroll
from mtl.metagrad.products import through_updates
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class FirstOrder(AbstractEstimator):
    """Drop every second derivative (FOMAML, arXiv 1703.03400): inner gradients count as constants.

    Cost: K gradients, no pull: the floor that every other estimator walks towards.
    Equals: :class:`mtl.Exact` for a linear inner loss. Exactly zero on a meta-parameter that acts only inside the inner
    loss.

    Warns:
        StructuralZeroWarning: naming such meta-parameters and an estimator that does train them.
    """

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = unroll(problem, meta)
        losses, adjoint = outer_adjoint(problem, meta, trajectory)
        warn_of_zeros(self, problem, meta, trajectory, follows={"init", "outer", "update"})
        adjoint, _ = through_updates(
            problem, meta, trajectory.weights[0], trajectory.states[0], trajectory.gradients, adjoint
        )
        grads = through_init(problem, meta, adjoint)
        return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, 0)
