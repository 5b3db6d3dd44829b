"""Meta-gradients through the last inner step alone: T1-T2 and SAMA."""

from __future__ import annotations

from dataclasses import dataclass

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, MetaGradient, outer_adjoint, warn_of_zeros, without_steps
from mtl.metagrad.problem import InnerProblem, unroll
from mtl.metagrad.products import AbstractPull, PullChoice, as_pull, through_updates
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class OneStep(AbstractEstimator):
    r"""Differentiate the last inner step and forget the others (T1-T2, arXiv 1511.06727).

    .. math:: g = \frac{\partial F}{\partial \phi} - \alpha M_{K-1} \frac{\partial F}{\partial \theta}

    Cost: K gradients and one pull.
    Equals: :class:`mtl.Exact` for K = 1 and a start that does not depend on the meta-parameters. Zero on the initial
    weights, and on what acts inside the loss of earlier steps only; of learned step sizes it sees the last use.

    Args:
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Warns:
        StructuralZeroWarning: naming meta-parameters that it cannot train.
    """

    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        return _last_step(self, problem, meta, self.pull, before=True)


@dataclass(frozen=True)
class SAMA(AbstractEstimator):
    r"""One implicit step with the optimiser's own Jacobian (arXiv 2310.05674).

    .. math:: g = \frac{\partial F}{\partial \phi} + M_K \Big(\frac{\partial U}{\partial g}\Big)^{\!\top}
              \frac{\partial F}{\partial \theta}

    The inverse Hessian is taken for the identity, and :math:`\partial U / \partial g`, the Jacobian of the last update
    in its gradient, keeps what an adaptive optimiser does to each element (for :class:`mtl.InnerAdam` a diagonal; for
    gradient descent :math:`-\alpha`). Linearised at the adapted weights, by a finite difference unless told otherwise.

    Cost: K gradients and one pull, by default of two plain gradients.
    Equals: :class:`OneStep` for a quadratic inner loss and gradient descent. Zero on the initial weights.

    Args:
        pull: ``"finite-difference"``, ``"reverse"`` or ``"forward-over-reverse"``, or an instance of a pull.

    Warns:
        StructuralZeroWarning: naming meta-parameters that it cannot train.
    """

    pull: PullChoice = "finite-difference"

    def __post_init__(self) -> None:
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        return _last_step(self, problem, meta, self.pull, before=False)


def _last_step(
    estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors, pull: str | AbstractPull, before: bool
) -> MetaGradient:
    """Back through the last update; its network share is taken at the weights before that step, or after it."""
    trajectory = unroll(problem, meta)
    losses, adjoint = outer_adjoint(problem, meta, trajectory)
    if problem.num_steps == 0:
        return without_steps(problem, meta, trajectory, losses, adjoint)
    warn_of_zeros(estimator, problem, meta, trajectory, follows={"outer", "last", "update"})
    last = problem.num_steps - 1
    weights, state, gradients = trajectory.weights[last], trajectory.states[last], trajectory.gradients[last:]
    adjoint, cotangent = through_updates(problem, meta, weights, state, gradients, adjoint)
    anchor = weights if before else trajectory.weights[-1]
    _, m = as_pull(pull).at(problem, anchor, meta, last)(cotangent)
    grads = tensors.add(adjoint.meta, m)
    return MetaGradient(losses, grads, trajectory.weights[-1], trajectory.evaluations, 1)
