"""Number, mean and variance of examples, which can be joined without the examples themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """How many examples there were, and the mean and variance of each feature.

    Args:
        count: of examples, 0 or more.
        mean: ``(..., D)`` float64, on the CPU.
        var: ``(..., D)`` float64, divided by the count.
    """

    count: int
    mean: Tensor
    var: Tensor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """Of features ``(..., n, D)``."""
        values = features.cpu().double()
        return Moments(values.shape[-2], values.mean(-2), values.var(-2, unbiased=False))

    @staticmethod
    def of_batches(batches: Iterable[Tensor], width: int) -> Moments:
        """Of features ``(n, D)``, batch by batch; none have a count of zero."""
        nothing = torch.zeros(width, dtype=torch.float64)
        found = Moments(0, nothing, nothing)
        for features in batches:
            found = Moments.of(features).joined(found)
        return found

    def joined(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque, 1979); shapes are broadcast, and one of the two is not empty."""
        count = self.count + other.count
        mine, theirs = self.count / count, other.count / count
        between = mine * theirs * (self.mean - other.mean).square()
        var = mine * self.var + theirs * other.var + between
        return Moments(count, mine * self.mean + theirs * other.mean, var)
