"""The one interface of all meta-gradient estimators, and the two ends of the sweep that they share."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem, Trajectory
from mtl.metagrad.products import AbstractPull, Adjoint, Products, add_products, through_updates
from mtl.metagrad.tensors import Tensors


class StructuralZeroWarning(UserWarning):
    """An estimator gives a meta-parameter exactly zero, whatever the data: it would train nothing."""


@dataclass(frozen=True)
class MetaGradient:
    """What an estimator returns.

    Args:
        losses: ``(tasks,)`` outer losses after adaptation.
        grads: gradient of the *mean* of the losses over tasks, with the keys and shapes of ``meta``.
        weights: the adapted fast weights ``theta_K``, outside every graph.
        gradients: inner gradients evaluated in the forward loop.
        pulls: second-derivative products evaluated on the way back.
        diagnostics: numbers worth logging, such as ``max_rho``, the largest relative change per step of a cotangent:
            step size times curvature along it.
    """

    losses: Tensor
    grads: Tensors
    weights: Tensors
    gradients: int
    pulls: int
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Mean outer loss over tasks."""
        return self.losses.mean()


class AbstractEstimator(abc.ABC):
    """Meta-gradient of a bilevel problem. Implementations are frozen dataclasses whose fields are their options."""

    @abc.abstractmethod
    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        """Adapt, judge, and return the gradient of the mean outer loss with respect to ``meta``."""


def outer_adjoint(
    problem: InnerProblem, meta: Tensors, trajectory: Trajectory, step: int = -1
) -> tuple[Tensor, Adjoint]:
    """Where every sweep starts: the outer losses, and their gradient in the weights and directly in ``meta``.

    Args:
        step: of the trajectory's weights ``theta_0 .. theta_K``, by default the last.
    """
    weights, phi = tensors.leaf(trajectory.weights[step]), tensors.leaf(meta)
    with torch.enable_grad():
        losses = problem.outer_loss(weights, phi)
        loss = losses.mean()
    trajectory.reached["outer"] = tensors.reaches([loss], phi)
    d_weights, d_meta = tensors.grad(loss, weights, phi, magnitude=problem.execution.loss_scale)
    adjoint = Adjoint(d_weights, tensors.zeros_like(trajectory.states[step]), d_meta)
    return losses.detach(), adjoint


def exact_sweep(
    problem: InnerProblem,
    meta: Tensors,
    trajectory: Trajectory,
    adjoint: Adjoint,
    steps: Iterable[int],
    pull: AbstractPull,
    kept: dict[int, Products] | None = None,
) -> Adjoint:
    """Walk back through ``steps`` (last first), one fresh pull each.

    One step's graph is alive at a time, so memory is flat in K.

    Args:
        kept: products of steps whose graph is alive already; each is let go once used.
    """
    kept = kept or {}
    for step in steps:
        weights, state = trajectory.weights[step], trajectory.states[step]
        adjoint, cotangent = through_updates(
            problem, meta, weights, state, trajectory.gradients[step : step + 1], adjoint
        )
        products = kept.pop(step) if step in kept else pull.at(problem, weights, meta, step)
        adjoint = add_products(adjoint, products(cotangent))
        del products  # or two steps' graphs are alive while the next is built
    return adjoint


def through_init(problem: InnerProblem, meta: Tensors, adjoint: Adjoint) -> Tensors:
    """Where every sweep ends: add what the initial weights owe to ``meta``.

    ``init`` is evaluated again so that its graph never meets a step's.
    """
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        weights = problem.init(phi)
    seeds = [adjoint.weights[k] for k in weights]
    (grads,) = tensors.grad(weights.values(), phi, cotangents=seeds, magnitude=problem.execution.loss_scale)
    return tensors.add(adjoint.meta, grads)


def without_steps(
    problem: InnerProblem, meta: Tensors, trajectory: Trajectory, losses: Tensor, adjoint: Adjoint
) -> MetaGradient:
    """The meta-gradient for K = 0, where nothing was solved or stepped: the initial weights are the answer."""
    return MetaGradient(losses, through_init(problem, meta, adjoint), trajectory.weights[-1], 0, 0)


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
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        updated, _ = problem.optimizer.update(trajectory.weights[0], trajectory.states[0], trajectory.gradients[0], phi)
    reached = trajectory.reached | {"update": tensors.reaches(updated.values(), phi)}
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
