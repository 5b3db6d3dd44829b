"""Inner optimisers: one inner step as a pure function of weights, state, gradient and meta-parameters."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.registry import Registry
from mtl.metagrad.tensors import Tensors

StepSize = float | Tensor | Mapping[str, Tensor]


class AbstractInnerOptimizer(abc.ABC):
    """One inner update as a pure function: no in-place change, differentiable in every argument."""

    weight_decay: float = 0.0

    @abc.abstractmethod
    def init(self, weights: Tensors) -> Tensors:
        """The optimiser state before the first step."""

    @abc.abstractmethod
    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        """``(weights, state)`` after one step along ``gradient``."""


@dataclass(frozen=True)
class InnerSGD(AbstractInnerOptimizer):
    r"""Gradient descent, with the conventions of :class:`torch.optim.SGD`.

    .. math:: v \leftarrow \mu v + g + \lambda \theta, \qquad \theta \leftarrow \theta - \alpha v

    Args:
        lr: step size :math:`\alpha`: a number, or a function of ``meta`` that returns a number, a tensor that
            broadcasts against every fast weight, or one such tensor per fast weight by name. The function makes step
            sizes meta-parameters (Meta-SGD, arXiv 1707.09835; MAML++, arXiv 1810.09502).
        momentum: :math:`\mu` in ``[0, 1)``.
        weight_decay: :math:`\lambda >= 0`.

    Raises:
        ValueError: when a number is outside its range.

    >>> sgd = InnerSGD(lr=0.5)
    >>> weights, _ = sgd.update({"w": torch.ones(1, 2)}, {}, {"w": torch.ones(1, 2)}, {})
    >>> weights["w"].tolist()
    [[0.5, 0.5]]
    """

    lr: float | Callable[[Tensors], StepSize] = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.lr) and not 0 < self.lr < math.inf:
            raise ValueError(
                f"InnerSGD(lr={self.lr}): the inner step size must be positive and finite; for no adaptation use "
                "num_steps=0"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"InnerSGD(momentum={self.momentum}): expected 0 <= momentum < 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"InnerSGD(weight_decay={self.weight_decay}): expected a number >= 0")

    def init(self, weights: Tensors) -> Tensors:
        return tensors.zeros_like(weights) if self.momentum else {}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        direction = tensors.add(gradient, weights, self.weight_decay) if self.weight_decay else gradient
        if self.momentum:
            direction = state = tensors.add(direction, state, self.momentum)
        step = {k: lr[k] * v for k, v in direction.items()}
        return tensors.add(weights, step, -1.0), state


@dataclass(frozen=True)
class InnerAdam(AbstractInnerOptimizer):
    r"""Adam (arXiv 1412.6980), with the conventions of :class:`torch.optim.Adam`.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
              \theta \leftarrow \theta - \alpha \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Element-wise, so a batch of tasks moves as each would alone. A meta-gradient through the first steps is dominated by
    elements whose gradient is near zero, where a step of Adam is nearly a sign: a larger ``eps`` tames it. The averages
    of weights in half precision are in float32, where squares of small gradients and ``0.999 ** t`` are not lost.

    Args:
        lr: as in :class:`InnerSGD`.
        betas: decay of the two averages, each in ``[0, 1)``.
        eps: added to the root, > 0.

    Raises:
        ValueError: when a number is outside its range.
    """

    lr: float | Callable[[Tensors], StepSize] = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not callable(self.lr) and not 0 < self.lr < math.inf:
            raise ValueError(f"InnerAdam(lr={self.lr}): the inner step size must be positive and finite")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"InnerAdam(betas={self.betas}): expected two numbers, each 0 <= beta < 1")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"InnerAdam(eps={self.eps}): expected a positive number; 1e-8 is Adam's own")

    def init(self, weights: Tensors) -> Tensors:
        zeros = {k: torch.zeros_like(v, dtype=_precise(v.dtype)) for k, v in weights.items()}
        count = next(iter(zeros.values())).new_zeros(())
        return {"step": count} | {f"m.{k}": v for k, v in zeros.items()} | {f"v.{k}": v for k, v in zeros.items()}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        b1, b2 = self.betas
        step = state["step"].detach() + 1
        new_weights, new_state = {}, {"step": step}
        for k, g in gradient.items():
            g = g.to(state[f"m.{k}"].dtype)
            m = new_state[f"m.{k}"] = b1 * state[f"m.{k}"] + (1 - b1) * g
            v = new_state[f"v.{k}"] = b2 * state[f"v.{k}"] + (1 - b2) * g * g
            # The root has no derivative at zero; a weight that the loss never reads would turn it into NaN.
            root = (v / (1 - b2**step)).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
            moved = weights[k] - lr[k] * m / (1 - b1**step) / (root + self.eps)
            new_weights[k] = moved.to(weights[k].dtype)
        return new_weights, new_state


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Float32 in place of a half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


INNER_OPTIMIZERS = Registry("inner optimiser", "mtl.metagrad.INNER_OPTIMIZERS")
"""Inner optimisers by the name that saved files use. Each is a frozen dataclass with a field ``lr``."""
INNER_OPTIMIZERS.register("sgd", InnerSGD, help="Gradient descent, with momentum and weight decay.")
INNER_OPTIMIZERS.register("adam", InnerAdam, help="Adam: step sizes adapted element by element.")


def sizes_of(lr: float | Callable[[Tensors], StepSize], meta: Tensors, like: Tensors) -> Mapping[str, float | Tensor]:
    """One step size per fast weight, however it was given."""
    found = lr(meta) if callable(lr) else lr
    return found if isinstance(found, Mapping) else dict.fromkeys(like, found)
