"""The one interface of all meta-gradient estimators, and the two ends of the sweep that they share."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl import tensors
from mtl.inner import InnerProblem, Trajectory
from mtl.pulls import AbstractPull, Adjoint, add_products, through_updates
from mtl.tensors import Tensors


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
        diagnostics: numbers worth logging, such as ``max_rho``, the largest ``step size * curvature`` that a window
            met.
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


def outer_adjoint(problem: InnerProblem, meta: Tensors, trajectory: Trajectory) -> tuple[Tensor, Adjoint]:
    """Where every sweep starts: the outer losses, and their gradient in the last weights and directly in ``meta``."""
    weights, phi = tensors.leaf(trajectory.weights[-1]), tensors.leaf(meta)
    with torch.enable_grad():
        losses = problem.outer_loss(weights, phi)
        loss = losses.mean()
    d_weights, d_meta = tensors.grad(loss, weights, phi)
    adjoint = Adjoint(d_weights, tensors.zeros_like(trajectory.states[-1]), d_meta)
    return losses.detach(), adjoint


def exact_sweep(
    problem: InnerProblem,
    meta: Tensors,
    trajectory: Trajectory,
    adjoint: Adjoint,
    steps: Iterable[int],
    pull: AbstractPull,
) -> Adjoint:
    """Walk back through ``steps`` (last first), one fresh pull each.

    One step's graph is alive at a time, so memory is flat in K.
    """
    for step in steps:
        weights, state = trajectory.weights[step], trajectory.states[step]
        adjoint, cotangent = through_updates(
            problem, meta, weights, state, trajectory.gradients[step : step + 1], adjoint
        )
        adjoint = add_products(adjoint, pull.at(problem, weights, meta, step)(cotangent))
    return adjoint


def through_init(problem: InnerProblem, meta: Tensors, adjoint: Adjoint) -> Tensors:
    """Where every sweep ends: add what the initial weights owe to ``meta``.

    ``init`` is evaluated again so that its graph never meets a step's.
    """
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        weights = problem.init(phi)
    (grads,) = tensors.grad(weights.values(), phi, cotangents=[adjoint.weights[k] for k in weights])
    return tensors.add(adjoint.meta, grads)


def reaches(outputs: Iterable[Tensor], inputs: Tensors) -> set[str]:
    """Names of the leaves that the outputs depend on, read off the graph without computing anything."""
    leaves = {id(v): k for k, v in inputs.items()}
    found: set[str] = {leaves[id(o)] for o in outputs if id(o) in leaves}
    stack = [o.grad_fn for o in outputs if o.grad_fn is not None]
    seen = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        found |= {leaves[id(v)] for v in [getattr(node, "variable", None)] if id(v) in leaves}
        stack += [n for n, _ in node.next_functions if n is not None]
    return found
