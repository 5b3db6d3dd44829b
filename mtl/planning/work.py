"""Count the evaluations of an estimator for K inner steps, by running it on a problem with eight weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mtl.metagrad.estimators import AbstractEstimator
from mtl.metagrad.optimizers import InnerSGD
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import AbstractPull, Known, Products, as_pull
from mtl.metagrad.tensors import Tensors

FLAT = (1e-3,) * 8
"""Low curvatures: adaptive windows need no sub-steps, and conjugate gradients converge at once."""
STEEP = tuple(2.0**i for i in range(-3, 5))
"""High and different curvatures: adaptive windows split, and conjugate gradients do not converge early."""


@dataclass(frozen=True)
class Work:
    """Number of evaluations for K inner steps.

    Args:
        gradients: gradients of the inner loss whose graph is freed at once.
        anchors: linearisations of the inner gradient, each with its first product.
        products: further products at an existing anchor.
        outer: gradients of the outer loss.
    """

    gradients: int
    anchors: int
    products: int
    outer: int


def work(estimator: AbstractEstimator, steps: int) -> tuple[Work, Work]:
    """The least and the most work for K steps; they differ if an estimator depends on curvature."""
    return _count(estimator, steps, FLAT), _count(estimator, steps, STEEP)


def with_pull(estimator: AbstractEstimator, pull: str | AbstractPull) -> AbstractEstimator:
    """The estimator with another pull; one without this option is returned unchanged."""
    changed: Any = estimator
    return replace(changed, pull=pull) if takes_pull(estimator) else estimator


def takes_pull(estimator: AbstractEstimator) -> bool:
    """Whether the estimator has the option ``pull``, and so evaluates products of second derivatives."""
    described: Any = estimator
    return "pull" in {f.name for f in fields(described)}


def _count(estimator: AbstractEstimator, steps: int, curvatures: tuple[float, ...]) -> Work:
    counting, outer = _Counting(), [0]
    found = with_pull(estimator, counting)(_problem(steps, curvatures, outer), {})
    # Autograd walks back the rest through the graphs that these gradients keep.
    kept = found.pulls - counting.products
    return Work(found.gradients - kept, counting.anchors + kept, counting.products - counting.anchors, outer[0])


def _problem(steps: int, curvatures: tuple[float, ...], outer: list[int]) -> InnerProblem:
    h = torch.tensor(curvatures, dtype=torch.float64)

    def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
        outer[0] += 1
        return (weights["w"] - 1).square().sum(1)

    return InnerProblem(
        init=lambda meta: {"w": torch.zeros(1, len(h), dtype=torch.float64)},
        inner_loss=lambda weights, meta, step: 0.5 * (h * weights["w"].square()).sum(1),
        outer_loss=outer_loss,
        num_steps=steps,
        optimizer=InnerSGD(lr=0.25),
    )


class _Counting(AbstractPull):
    """Reverse pulls that count themselves."""

    def __init__(self) -> None:
        self.anchors = self.products = 0

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        self.anchors += 1
        evaluate = as_pull("reverse").at(problem, weights, meta, step)

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            self.products += 1
            return evaluate(cotangent)

        return products
