"""Meta-gradients through the last inner step alone: T1-T2 and SAMA."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class AbstractLastStep(AbstractEstimator):
    """Looks at the last inner step alone; the initial weights get nothing.

    Warns:
        StructuralZeroWarning: naming meta-parameters that it cannot train.
    """

    pull: PullChoice

    def __post_init__(self) -> None:
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        if problem.num_steps:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"outer", "last", "update"})
            self._back(sweep, problem.num_steps)
        return sweep.finish(init=False)

    @abc.abstractmethod
    def _back(self, sweep: Sweep, last: int) -> None:
        """Walk back over the step that leads to ``theta_last``."""


@dataclass(frozen=True)
class OneStep(AbstractLastStep):
    r"""Differentiate the last inner step and forget the others (T1-T2, arXiv 1511.06727).

    .. math:: g = \frac{\partial F}{\partial \phi} - \alpha M_{K-1} \frac{\partial F}{\partial \theta}

    Cost: K gradients and one pull.
    Equals: :class:`mtl.Exact` for K = 1 and a start that does not depend on the meta-parameters. Zero on the initial
    weights, and on what acts inside the loss of earlier steps only; of learned step sizes it sees the last use.

    Args:
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.
    """

    pull: PullChoice = "reverse"

    def _back(self, sweep: Sweep, last: int) -> None:
        sweep.back(last - 1, last)


@dataclass(frozen=True)
class SAMA(AbstractLastStep):
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
    """

    pull: PullChoice = "finite-difference"

    def _back(self, sweep: Sweep, last: int) -> None:
        direct, cotangent = sweep.through(last - 1, last, sweep.adjoint)
        _, m = sweep.pull.at(sweep.problem, sweep.trajectory.weights[-1], sweep.meta, last - 1)(cotangent)
        sweep.adjoint, sweep.pulls = replace(direct, meta=tensors.add(direct.meta, m)), 1
