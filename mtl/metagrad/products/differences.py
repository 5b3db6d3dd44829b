"""Products as differences of plain gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products.base import AbstractPull, Known, Products
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class FiniteDifference(AbstractPull):
    r"""Difference of two plain gradients, task by task.

    .. math:: (H c, M c) \approx \frac{\nabla L(\theta + \epsilon c) - \nabla L(\theta - \epsilon c)}{2 \epsilon},
              \qquad \epsilon = \text{radius} / \lVert c \rVert

    Cost: 4.2 support forwards and first-order memory; no second derivative is taken, so fused attention, activation
    checkpointing and sharded weights keep working. The error falls as ``radius**2`` until rounding takes over. ReLU
    networks have kinks that a difference crosses: prefer ``Reverse`` there.

    With ``sides=1`` the second gradient is the one at :math:`\theta`, which the forward loop has evaluated already:
    half the cost, where no meta-parameter acts inside the inner loss. The error falls as ``radius`` only, so the radius
    has to be smaller; in low precision, where it has to be larger, take both sides.

    Args:
        radius: Euclidean length of the displacement of one task's fast weights. In float32 1e-2 .. 1e-1 for two sides,
            about 1e-3 for one.
        sides: 2 for a central difference, 1 for a one-sided one.

    Raises:
        ValueError: when ``radius`` is not positive, or ``sides`` neither 1 nor 2.
    """

    radius: float = 1e-2
    sides: int = 2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(
                f"FiniteDifference(radius={self.radius}): expected a positive length, 1e-2 .. 1e-1 in float32"
            )
        if self.sides not in (1, 2):
            raise ValueError(f"FiniteDifference(sides={self.sides}): expected 1 or 2")

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        known = gradient if self.sides == 1 else None

        def evaluate(at: Tensors, seeds: Tensor, look: bool = False) -> tuple[Tensors, Tensors, bool]:
            theta, phi = tensors.leaf(at), tensors.leaf(meta)
            with torch.enable_grad():
                losses = problem.inner_loss(theta, phi, step)
            acts = look and bool(tensors.reaches([losses], phi))
            # The seeds divide by epsilon before tasks are summed:
            # a meta-parameter shared by tasks sees each task with its own epsilon.
            scale = problem.execution.loss_scale
            h, m = tensors.grad(losses, theta, phi, cotangents=[seeds.to(losses.dtype)], magnitude=scale)
            return h, m, acts

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            length = tensors.norm(cotangent)
            epsilon = self.radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)
            offset, seeds = tensors.scale(cotangent, epsilon), 1 / (self.sides * epsilon)
            h_plus, m_plus, acts = evaluate(tensors.add(weights, offset), seeds, look=known is not None)
            if known is not None and not acts:
                return tensors.add(h_plus, tensors.scale(known(), seeds), -1.0), m_plus
            away = tensors.add(weights, offset, -1.0) if self.sides == 2 else weights
            h_minus, m_minus, _ = evaluate(away, -seeds)
            return tensors.add(h_plus, h_minus), tensors.add(m_plus, m_minus)

        return products
