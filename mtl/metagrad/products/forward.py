"""Exact products in forward mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mtl.metagrad import tensors
from mtl.metagrad.compiling import not_compiled
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products.base import AbstractPull, Known, Products
from mtl.metagrad.products.twice import twice_differentiable
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class ForwardOverReverse(AbstractPull):
    r"""Forward over reverse: the directional derivative of a plain gradient. Exact.

    Second derivatives are symmetric, so the change of :math:`(\partial L/\partial\theta, \partial L/\partial\phi)`
    along :math:`(c, 0)` is :math:`(H c, M c)`: one pass of dual numbers through forward and backward gives both.

    Cost: about twice a plain gradient in arithmetic, first-order depth of graph; every product is evaluated anew.
    Needs a forward-mode formula for every operation of the network and of its backward pass.

    Raises:
        RuntimeError: when an operation has no forward-mode formula.
    """

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        problem.execution.require_second_order()
        return lambda cotangent: _push_forward(problem, weights, meta, step, cotangent)


@not_compiled
def _push_forward(
    problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, cotangent: Tensors
) -> tuple[Tensors, Tensors]:
    scale = problem.execution.loss_scale
    # Contiguous: a tangent is written to, and an expanded tensor has one place for several elements.
    theta, phi = (tensors.leaf({k: v.contiguous() for k, v in group.items()}) for group in (weights, meta))
    length = 1.0 if scale is None else tensors.power_of_two(cotangent.values())
    with torch.enable_grad(), twice_differentiable(), forward_ad.dual_level():
        dual = {k: forward_ad.make_dual(v, (cotangent[k] * length).to(v.dtype)) for k, v in theta.items()}
        h, m = tensors.grad(problem.inner_loss(dual, phi, step).sum(), dual, phi, magnitude=scale)
        return _tangents(h, length), _tangents(m, length)


def _tangents(values: Tensors, length: Tensor | float) -> Tensors:
    pairs = {k: (v, forward_ad.unpack_dual(v).tangent) for k, v in values.items()}
    # No tangent: the gradient does not change along the cotangent.
    return {k: torch.zeros_like(v) if t is None else t.detach() / length for k, (v, t) in pairs.items()}
