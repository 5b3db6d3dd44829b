"""The one interface of all meta-gradient estimators, and the warning where one of them cannot train a parameter."""

from __future__ import annotations

import abc
import math
import warnings

import torch

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.sweep import MetaGradient
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import Trajectory


class StructuralZeroWarning(UserWarning):
    """An estimator gives a meta-parameter exactly zero, whatever the data: it would train nothing."""


class AbstractEstimator(abc.ABC):
    """Meta-gradient of a bilevel problem. Implementations are frozen dataclasses whose fields are their options."""

    @abc.abstractmethod
    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        """Adapt, judge, and return the gradient of the mean outer loss with respect to ``meta``.

        Warns:
            StructuralZeroWarning: naming meta-parameters that the estimator cannot train.
        """

    def _require(self, fine: bool, option: str, expected: str) -> None:
        """Refuse the value of an option, unless it is fine; infinity never is."""
        if not fine or getattr(self, option) == math.inf:
            raise ValueError(f"{type(self).__name__}({option}={getattr(self, option)!r}): expected {expected}")


ROUTES = {
    "init": "through the initial weights",
    "outer": "in the outer loss",
    "inner": "inside the inner loss",
    "update": "in the update",
}
"""The ways a meta-parameter can act, in words."""


def warn_of_zeros(
    estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors, trajectory: Trajectory, follows: set[str]
) -> None:
    """Name the meta-parameters that act only in ways which the estimator does not follow.

    Reads what the sweep recorded and builds one element-wise update; no pass through the network.

    Args:
        follows: the routes that the estimator differentiates.

    Warns:
        StructuralZeroWarning: naming them, where they act and an estimator that trains them.
    """
    if problem.num_steps == 0:
        return
    reached = trajectory.reached | {"update": _reached_by_update(problem, meta, trajectory)}
    trained = set().union(*(reached[route] for route in follows))
    lost: dict[str, list[str]] = {}
    for name in sorted(set().union(*reached.values()) - trained):
        where = " and ".join(words for route, words in ROUTES.items() if name in reached[route])
        lost.setdefault(where, []).append(name)
    for where, names in lost.items():
        warnings.warn(
            f"{type(estimator).__name__} gives exactly zero for {names}: they act only {where}. "
            "Windowed, Truncated or Rematerialised train them.",
            StructuralZeroWarning,
            stacklevel=4,
        )


def acts_within(problem: InnerProblem, meta: Tensors, trajectory: Trajectory) -> bool:
    """Whether a meta-parameter acts in the inner loss or in the update, not before and after the inner loop alone."""
    reached = trajectory.reached
    return bool(reached["inner"] | reached["last"] | _reached_by_update(problem, meta, trajectory))


def _reached_by_update(problem: InnerProblem, meta: Tensors, trajectory: Trajectory) -> set[str]:
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        updated, _ = problem.optimizer.update(trajectory.weights[0], trajectory.states[0], trajectory.gradients[0], phi)
    return tensors.reaches(updated.values(), phi)
