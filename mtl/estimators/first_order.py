"""Meta-gradient without second derivatives."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from mtl import tensors
from mtl.estimators.base import (
    AbstractEstimator,
    MetaGradient,
    StructuralZeroWarning,
    outer_adjoint,
    reaches,
    through_init,
)
from mtl.inner import InnerProblem, Trajectory, run
from mtl.pulls import through_updates
from mtl.tensors import Tensors


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
        trajectory = run(problem, meta)
        _warn_of_structural_zeros(problem, meta, trajectory)
        losses, adjoint = outer_adjoint(problem, meta, trajectory)
        adjoint, _ = through_updates(
            problem, meta, trajectory.weights[0], trajectory.states[0], trajectory.gradients, adjoint
        )
        grads = through_init(problem, meta, adjoint)
        return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, 0)


@torch.enable_grad()
def _warn_of_structural_zeros(problem: InnerProblem, meta: Tensors, trajectory: Trajectory) -> None:
    """Compare which meta-parameters the inner loss reads with those that this estimator can reach by another way.

    Reads graphs, takes no gradient.
    """
    if problem.num_steps == 0:
        return
    phi, weights = tensors.leaf(meta), trajectory.weights[0]
    inside = reaches([problem.inner_loss(tensors.leaf(weights), phi, 0)], phi)
    updated, _ = problem.optimizer.update(weights, trajectory.states[0], trajectory.gradients[0], phi)
    lost = inside - reaches([*problem.init(phi).values(), *updated.values()], phi)
    if lost and (lost := lost - reaches([problem.outer_loss(weights, phi)], phi)):
        warnings.warn(
            f"FirstOrder gives exactly zero for {sorted(lost)}: they act only inside the inner loss. "
            "Windowed, Truncated or Rematerialised train them.",
            StructuralZeroWarning,
            stacklevel=3,
        )
