"""Meta-gradient without second derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.sweep import MetaGradient, Sweep
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
        sweep = Sweep(problem, meta)
        warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"init", "outer", "update"})
        sweep.skip(0, problem.num_steps)
        return sweep.finish()
