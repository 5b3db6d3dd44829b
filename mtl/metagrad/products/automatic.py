"""Differences where they are found as good as exact products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products.base import AbstractPull, Known, Products
from mtl.metagrad.products.differences import FiniteDifference
from mtl.metagrad.products.reverse import Reverse
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Automatic(AbstractPull):
    """One-sided finite differences where they are as good as the exact products, and those elsewhere.

    Decided anew in every sweep: the first products are exact, and are compared with the difference along the same
    cotangent. A network without second derivatives gets two-sided differences, without a comparison.

    Cost: that of ``Reverse`` and of one difference at the first anchor; then that of what was chosen. Worth it from
    three anchors upwards.

    Args:
        tolerance: largest relative error of either product, of any task, at which differences are taken.
        radius: of the differences.

    Raises:
        ValueError: when either is not positive.
    """

    tolerance: float = 0.01
    radius: float = 1e-3

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.radius > 0:
            raise ValueError(
                f"Automatic(tolerance={self.tolerance}, radius={self.radius}): expected two positive numbers"
            )

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        return self.for_sweep().at(problem, weights, meta, step, gradient)

    def for_sweep(self) -> AbstractPull:
        return _Deciding(self)


class _Deciding(AbstractPull):
    """Takes the exact products until it has compared one."""

    def __init__(self, options: Automatic) -> None:
        self._options, self._difference = options, FiniteDifference(options.radius, sides=1)
        self._chosen: AbstractPull | None = None

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        if self._chosen is None and problem.execution.no_double_backward_reason:
            self._chosen = FiniteDifference()
        if self._chosen is not None:
            return self._chosen.at(problem, weights, meta, step, gradient)
        exact = Reverse().at(problem, weights, meta, step, gradient)
        difference = self._difference.at(problem, weights, meta, step, gradient)

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            found = exact(cotangent)
            if self._chosen is None:
                errors = [_error(a, b) for a, b in zip(difference(cotangent), found, strict=True)]
                good = float(problem.execution.sync_max(torch.stack(errors).amax())) <= self._options.tolerance
                self._chosen = self._difference if good else Reverse()
            return found

        return products


def _error(found: Tensors, exact: Tensors) -> Tensor:
    """Largest relative error of what belongs to one task, or of all that tasks share; not a number is a large one."""
    errors = [((found[k] - v).norm(), v.norm()) for k, v in exact.items()]
    if not errors:
        return torch.zeros(())
    off, length = (torch.stack(values).norm() for values in zip(*errors, strict=True))
    return (off / length.clamp_min(torch.finfo(length.dtype).tiny)).nan_to_num(float("inf"))
