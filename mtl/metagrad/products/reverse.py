"""Exact products by differentiating the gradient: the default."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtl.metagrad import tensors
from mtl.metagrad.compiling import not_compiled
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products.base import AbstractPull, Known, Products
from mtl.metagrad.products.twice import require_double_backward, twice_differentiable
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Reverse(AbstractPull):
    """Reverse over reverse: differentiate the gradient. Exact.

    Cost: 5.9 support forwards for the first product at an anchor, about 2.2 for each further one. Needs a network with
    a double backward.

    Raises:
        RuntimeError: when an operation of the network has no second derivative.
    """

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        return self.with_gradient(problem, weights, meta, step)[1]

    @not_compiled
    def with_gradient(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int
    ) -> tuple[Tensors, Products]:
        """The gradient as well, outside the graph: it is there anyway."""
        problem.execution.require_second_order()
        scale = problem.execution.loss_scale
        weights, meta = tensors.leaf(weights), tensors.leaf(meta)
        with torch.enable_grad(), twice_differentiable():
            loss = problem.inner_loss(weights, meta, step).sum() * (scale or 1.0)
            (gradient,) = tensors.grad(loss, weights, create_graph=True)
        require_double_backward(gradient)
        # The graph stays at the scale of the loss, so that what flows through it a second time does too.
        size, unscale = (None, 1.0) if scale is None else (1.0, 1.0 / scale)
        unscaled = lambda group: tensors.times(group, unscale)  # noqa: E731

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            h, m = _pull_back(gradient, weights, meta, cotangent, size)
            return (h, m) if scale is None else (unscaled(h), unscaled(m))

        return unscaled(tensors.detach(gradient)), products


@not_compiled  # no closure: it would stand in a cycle, and keep the graph until the garbage collector comes
def _pull_back(
    gradient: Tensors, weights: Tensors, meta: Tensors, cotangent: Tensors, size: float | None
) -> tuple[Tensors, Tensors]:
    seeds = [cotangent[k] for k in gradient]
    with twice_differentiable():  # checkpointed activations are recomputed here
        h, m = tensors.grad(gradient.values(), weights, meta, cotangents=seeds, retain_graph=True, magnitude=size)
    return h, m
