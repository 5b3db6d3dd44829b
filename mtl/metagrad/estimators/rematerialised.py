"""Exact meta-gradient in the memory of one inner step, or of as many as there is room for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter

from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem, inner_gradient
from mtl.metagrad.products import Products, PullChoice, Reverse, as_pull
from mtl.metagrad.sweep import MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import Trajectory, unroll


@dataclass(frozen=True)
class Rematerialised(AbstractEstimator):
    r"""Remember only the fast weights, rebuild one step's graph at a time on the way back.

    .. math::

        \text{acc} \mathrel{-}= \alpha M_k \lambda, \qquad \lambda \mathrel{-}= \alpha H_k \lambda, \qquad
        k = K-1, \dots, 0

    With a ``budget`` the graphs of the last steps stay alive, as many as fit, and only the others are rebuilt: unrolled
    speed where there is room, the memory of one step where there is none. The size of a step's graph is measured on the
    first step, by what autograd saves for it.

    Cost: K gradients and K pulls; peak memory is that of one step, for any K, and the budget. A kept step costs no
    second gradient.
    Equals: :class:`mtl.Exact` to rounding.

    Args:
        pull: ``"reverse"``, ``"forward-over-reverse"`` (both exact) or ``"finite-difference"``, or an instance of a
            pull.
        budget: MiB of graphs to keep; 0 keeps none, infinity all of them.

    Raises:
        ValueError: when the budget is negative, or given to a pull that has no graph to keep.
    """

    pull: PullChoice = "reverse"
    budget: float = 0.0

    def __post_init__(self) -> None:
        pull = as_pull(self.pull)
        if self.budget < 0:
            raise ValueError(f"Rematerialised(budget={self.budget}): expected MiB >= 0; 0 keeps no graph")
        if self.budget and not isinstance(pull, Reverse):
            raise ValueError(
                f"Rematerialised(pull={self.pull!r}, budget={self.budget}): only the reverse pull has a graph to keep; "
                "leave the budget out"
            )

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory, kept = self._run(problem, meta)
        sweep = Sweep(problem, meta, self.pull, trajectory, kept)
        for step in reversed(range(problem.num_steps)):
            sweep.back(step, step + 1)
        return sweep.finish()

    def _run(self, problem: InnerProblem, meta: Tensors) -> tuple[Trajectory, dict[int, Products]]:
        """The inner loop, and the products of the steps whose graph was kept."""
        kept: dict[int, Products] = {}
        if not self.budget:
            return unroll(problem, meta), kept
        room, saved = 0, _SavedBytes()

        def gradient_at(problem: InnerProblem, weights: Tensors, step: int) -> Tensors:
            nonlocal room
            if 0 < step < problem.num_steps - room:
                return inner_gradient(problem, weights, meta, step)
            with nullcontext() if step else saved:
                gradient, products = Reverse().with_gradient(problem, weights, meta, step)
            if step == 0:
                room = int(min(self.budget * 2**20 / max(1, saved.total), problem.num_steps))
            if step >= problem.num_steps - room:
                kept[step] = products
            return gradient

        return unroll(problem, meta, gradient_at=gradient_at), kept


class _SavedBytes(saved_tensors_hooks):
    """Bytes of storages that autograd saves while it is active, but for the network's weights, which stay anyway."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self._seen.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Parameter):
            storage = tensor.untyped_storage()
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()
