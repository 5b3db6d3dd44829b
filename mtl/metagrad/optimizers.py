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
LearningRate = float | Callable[[Tensors], StepSize]


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
        clip: largest norm of a task's gradient, over all fast weights together; a longer one is shortened to it before
            anything else happens, as :func:`torch.nn.utils.clip_grad_norm_` does. None: gradients stay as they are.

    Raises:
        ValueError: when a number is outside its range.

    >>> sgd = InnerSGD(lr=0.5)
    >>> weights, _ = sgd.update({"w": torch.ones(1, 2)}, {}, {"w": torch.ones(1, 2)}, {})
    >>> weights["w"].tolist()
    [[0.5, 0.5]]
    """

    lr: LearningRate = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_learning_rate(self, self.lr)
        _check(self, "momentum", 0 <= self.momentum < 1, "0 <= momentum < 1")
        _check(self, "weight_decay", 0 <= self.weight_decay < math.inf, "a number >= 0")
        _check_clip(self, self.clip)

    def init(self, weights: Tensors) -> Tensors:
        return tensors.zeros_like(weights) if self.momentum else {}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        gradient = clipped(gradient, self.clip)
        direction = tensors.add(gradient, weights, self.weight_decay) if self.weight_decay else gradient
        if self.momentum:
            direction = state = tensors.add(direction, state, self.momentum)
        if isinstance(self.lr, float):
            step = tensors.times(direction, self.lr)
        else:
            step = {k: lr[k] * v for k, v in direction.items()}
        return tensors.add(weights, step, -1.0), state


@dataclass(frozen=True)
class InnerAdam(AbstractInnerOptimizer):
    r"""Adam (arXiv 1412.6980), with the conventions of :class:`torch.optim.Adam`.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
              \theta \leftarrow \theta - \alpha \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Element-wise, so a batch of tasks moves as each would alone. A meta-gradient through the first steps is dominated by
    elements whose gradient is near zero, where a step of Adam is nearly a sign: a larger ``eps`` tames it, and so do
    averages that do not start at zero. The averages of weights in half precision are in float32, where squares of small
    gradients and ``0.999 ** t`` are not lost.

    Args:
        lr: as in :class:`InnerSGD`.
        betas: decay of the two averages, each in ``[0, 1)``.
        eps: added to the root, > 0.
        clip: as in :class:`InnerSGD`.
        start: averages to start from, a function of ``meta`` that returns ``m.<name>`` and ``v.<name>`` (>= 0) for
            every fast weight, each broadcastable to it, and perhaps ``step``, the number of steps they have seen
            already. Without ``step`` they count as settled: nothing is corrected for a start at zero. The function
            makes them meta-parameters; averages of an earlier loop are ``start=lambda meta: averages`` with
            ``averages = mtl.metagrad.unroll(earlier, meta).states[-1]``. None: from zero.

    Raises:
        ValueError: when a number is outside its range; in a step, when ``start`` lacks a fast weight.

    >>> settled = InnerAdam(lr=0.1, start=lambda meta: {"m.w": torch.ones(1), "v.w": torch.full((1,), 4.0)})
    >>> weights, _ = settled.update(w := {"w": torch.zeros(1, 2)}, settled.init(w), {"w": torch.ones(1, 2)}, {})
    >>> weights["w"].mul(100).round().tolist()  # 0.1 * 1 / 2, downwards
    [[-5.0, -5.0]]
    """

    lr: LearningRate = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    start: Callable[[Tensors], Tensors] | None = None

    def __post_init__(self) -> None:
        check_learning_rate(self, self.lr)
        _check(self, "betas", all(0 <= b < 1 for b in self.betas), "two numbers, each 0 <= beta < 1")
        _check(self, "eps", 0 < self.eps < math.inf, "a positive number; 1e-8 is Adam's own")
        _check_clip(self, self.clip)

    def init(self, weights: Tensors) -> Tensors:
        zeros = {k: torch.zeros_like(v, dtype=_precise(v.dtype)) for k, v in weights.items()}
        count = next(iter(zeros.values())).new_zeros(())
        return {"step": count} | {f"m.{k}": v for k, v in zeros.items()} | {f"v.{k}": v for k, v in zeros.items()}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        b1, b2 = self.betas
        state = self._started(state, meta)
        step = state["step"].detach() + 1
        new_weights, new_state = {}, {"step": step}
        for k, g in clipped(gradient, self.clip).items():
            g = g.to(state[f"m.{k}"].dtype)
            m = new_state[f"m.{k}"] = b1 * state[f"m.{k}"] + (1 - b1) * g
            v = new_state[f"v.{k}"] = b2 * state[f"v.{k}"] + (1 - b2) * g * g
            # The root has no derivative at zero; a weight that the loss never reads would turn it into NaN.
            root = (v / (1 - b2**step)).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
            moved = weights[k] - lr[k] * m / (1 - b1**step) / (root + self.eps)
            new_weights[k] = moved.to(weights[k].dtype)
        return new_weights, new_state

    def _started(self, state: Tensors, meta: Tensors) -> Tensors:
        """The state before a step. ``init`` knows no meta-parameters, so the first step brings the averages in."""
        if self.start is None:
            return state
        found = self.start(meta)
        if missing := sorted(state.keys() - found.keys() - {"step"}):
            raise ValueError(
                f"InnerAdam(start=...) returned no {missing[0]!r}: expected m.<name> and v.<name> for every fast weight"
            )
        given = {"step": torch.full_like(state["step"], math.inf)} | found
        first = state["step"] == 0  # no branch: the count stays on its device
        return {k: torch.where(first, given[k].to(v), v) for k, v in state.items()}


@dataclass(frozen=True)
class InnerNormalised(AbstractInnerOptimizer):
    r"""Steps whose length does not depend on that of the gradient, tensor by tensor and task by task.

    .. math:: u = \frac{g + \lambda \theta}{\lVert g \rVert + \lambda \lVert \theta \rVert + \epsilon}, \qquad
              v \leftarrow \mu v + \alpha u, \qquad \theta \leftarrow \theta - v

    Normalised gradient descent, or with ``relative=True`` LARS (arXiv 1708.03888), where :math:`u` is multiplied by
    :math:`\lVert\theta\rVert`. For fast weights of very different scales, such as all layers of a network, where one
    step size is too large for some and too small for others, and gradients that may explode. The state is that of
    momentum, none without it.

    A step does not vanish with the gradient, so the loop circles the solution at a distance of a step: the implicit
    estimators, which presume that it came close, do not suit it.

    Args:
        lr: as in :class:`InnerSGD`: the length of a step of one tensor, or with ``relative`` the share of its own
            length by which it moves.
        momentum: :math:`\mu` in ``[0, 1)``.
        weight_decay: :math:`\lambda >= 0`.
        relative: measure steps by the length of the weights. A tensor that is zero throughout, as a shift is at the
            start, counts as one of length 1, or it would never move.
        eps: > 0; gradients much shorter than it give shorter steps.

    Raises:
        ValueError: when a number is outside its range.

    >>> normalised = InnerNormalised(lr=0.5)
    >>> weights, _ = normalised.update({"w": torch.ones(1, 2)}, {}, {"w": torch.tensor([[30.0, 40.0]])}, {})
    >>> [round(v, 4) for v in weights["w"][0].tolist()]
    [0.7, 0.6]
    """

    lr: LearningRate = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    relative: bool = False
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_learning_rate(self, self.lr)
        _check(self, "momentum", 0 <= self.momentum < 1, "0 <= momentum < 1")
        _check(self, "weight_decay", 0 <= self.weight_decay < math.inf, "a number >= 0")
        _check(self, "eps", 0 < self.eps < math.inf, "a positive number; 1e-8 hardly shortens any step")

    def init(self, weights: Tensors) -> Tensors:
        return tensors.zeros_like(weights) if self.momentum else {}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        step = {k: lr[k] * self._direction(weights[k], g) for k, g in gradient.items()}
        if self.momentum:
            step = state = {k: (self.momentum * state[k] + v).to(state[k].dtype) for k, v in step.items()}
        return {k: (w - step[k]).to(w.dtype) for k, w in weights.items()}, state

    def _direction(self, weight: Tensor, gradient: Tensor) -> Tensor:
        long, length = _length(weight), _length(gradient) + self.eps
        if self.weight_decay:
            gradient, length = gradient + self.weight_decay * weight, length + self.weight_decay * long
        factor = 1 / length
        if self.relative:
            factor = factor * torch.where(_square(weight) > 0, long, 1.0)
        return gradient * tensors.per_task(factor, gradient)


def clipped(gradient: Tensors, limit: float | None) -> Tensors:
    """The gradient, shortened task by task to a norm over all its tensors of at most ``limit``."""
    if limit is None:
        return gradient
    squares = sum(_square(g) for g in gradient.values())
    assert isinstance(squares, Tensor)
    # The root has no derivative at zero. Up to the limit the factor is one, and constant.
    factor = limit / squares.clamp_min(limit**2).sqrt()
    return {k: g * tensors.per_task(factor, g).to(g.dtype) for k, g in gradient.items()}


def _square(value: Tensor) -> Tensor:
    """Squared norm of each task's part, ``(tasks,)``, in a precision that holds it."""
    return value.to(_precise(value.dtype)).square().reshape(len(value), -1).sum(1)


def _length(value: Tensor) -> Tensor:
    """Norm of each task's part, ``(tasks,)``, with a derivative (of zero) where the part is zero."""
    square = _square(value)
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def _check(optimizer: AbstractInnerOptimizer, option: str, fine: bool, expected: str) -> None:
    if not fine:
        raise ValueError(f"{type(optimizer).__name__}({option}={getattr(optimizer, option)}): expected {expected}")


def check_learning_rate(optimizer: AbstractInnerOptimizer, lr: LearningRate) -> None:
    """Refuse a number that is no step size."""
    fine = callable(lr) or 0 < lr < math.inf
    _check(optimizer, "lr", fine, "a positive, finite step size; for no adaptation use num_steps=0")


def _check_clip(optimizer: AbstractInnerOptimizer, clip: float | None) -> None:
    fine = clip is None or 0 < clip < math.inf
    _check(optimizer, "clip", fine, "a positive norm, or None for gradients as they are")


def _precise(dtype: torch.dtype) -> torch.dtype:
    """Float32 in place of a half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


INNER_OPTIMIZERS = Registry("inner optimiser", "mtl.metagrad.INNER_OPTIMIZERS")
"""Inner optimisers by the name that saved files use. Each is a frozen dataclass with a field ``lr``."""
INNER_OPTIMIZERS.register("sgd", InnerSGD, help="Gradient descent, with momentum and weight decay.")
INNER_OPTIMIZERS.register("adam", InnerAdam, help="Adam: step sizes adapted element by element.")
INNER_OPTIMIZERS.register("normalised", InnerNormalised, help="Steps of a given length for each tensor, as in LARS.")


def sizes_of(lr: LearningRate, meta: Tensors, like: Tensors) -> Mapping[str, float | Tensor]:
    """One step size per fast weight, however it was given."""
    found = lr(meta) if callable(lr) else lr
    return found if isinstance(found, Mapping) else dict.fromkeys(like, found)
