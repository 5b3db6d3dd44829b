"""Gradient descent whose momentum and decay are meta-parameters too, as its step sizes are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.optimizers import (
    INNER_OPTIMIZERS,
    AbstractInnerOptimizer,
    LearningRate,
    check_learning_rate,
    sizes_of,
)
from mtl.metagrad.tensors import Tensors

MOMENTUM, DECAY = "logit_momentum", "log_decay"


@INNER_OPTIMIZERS.register("emitted-sgd", help="Gradient descent with learned momentum and decay.")
@dataclass(frozen=True)
class EmittedSGD(AbstractInnerOptimizer):
    r"""Gradient descent that reads its momentum and its decay from ``meta``, for long inner loops.

    .. math:: v \leftarrow \mu v + g, \qquad \theta \leftarrow (1 - \delta) \theta - \alpha v

    with :math:`\mu` the sigmoid of ``meta["logit_momentum"]`` and :math:`\delta` the exponential of
    ``meta["log_decay"]``, so that outer steps keep them positive. Each is one number for all tasks, or has a task axis.
    Unlike the weight decay of :class:`InnerSGD`, :math:`\delta` does not depend on the step size (arXiv 1711.05101):
    where :math:`\theta` is a change that starts at zero, it is a pull back to the start.

    Args:
        lr: :math:`\alpha`, as in :class:`InnerSGD`.

    Raises:
        ValueError: the step size is not positive and finite; in a step, when ``meta`` lacks momentum or decay.

    >>> import torch
    >>> meta = {"logit_momentum": torch.zeros(()), "log_decay": torch.tensor(0.5).log()}
    >>> sgd = EmittedSGD(lr=0.1)
    >>> weights, state = sgd.update(w := {"w": torch.ones(1, 2)}, sgd.init(w), {"w": torch.ones(1, 2)}, meta)
    >>> [round(v, 3) for v in weights["w"][0].tolist()]
    [0.4, 0.4]
    """

    lr: LearningRate = 0.1

    def __post_init__(self) -> None:
        check_learning_rate(self, self.lr)

    def init(self, weights: Tensors) -> Tensors:
        return tensors.zeros_like(weights)

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        if missing := {MOMENTUM, DECAY} - meta.keys():
            raise ValueError(
                f"meta has no {min(missing)!r}: EmittedSGD expects what the generator 'refined' emits; use InnerSGD"
            )
        lr, momentum, kept = sizes_of(self.lr, meta, weights), meta[MOMENTUM].sigmoid(), 1 - meta[DECAY].exp()
        state = {k: _factor(momentum, v) * v + gradient[k] for k, v in state.items()}
        return {k: _factor(kept, w) * w - lr[k] * state[k] for k, w in weights.items()}, state


def _factor(values: Tensor, like: Tensor) -> Tensor:
    """One number for all tasks as it is, one of each task so that it broadcasts against ``(tasks, ...)``."""
    return tensors.per_task(values, like) if values.numel() > 1 else values.reshape([1] * like.dim())
