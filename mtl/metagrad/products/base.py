"""The one interface of all pulls."""

from __future__ import annotations

import abc
from collections.abc import Callable

from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.tensors import Tensors

Products = Callable[[Tensors], tuple[Tensors, Tensors]]
"""``cotangent -> (H c, M c)`` at a fixed anchor."""

Known = Callable[[], Tensors]
"""Fetches a gradient that was evaluated already, which may wait in the host's memory."""


class AbstractPull(abc.ABC):
    """How ``(H c, M c)`` is evaluated."""

    @abc.abstractmethod
    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        """Linearise the inner gradient of ``step`` at ``weights``; the result may be called several times.

        Args:
            gradient: fetches the inner gradient there, where it is known already.
        """

    def for_sweep(self) -> AbstractPull:
        """The pull of one backward sweep: itself, unless it learns from one anchor for the next."""
        return self
