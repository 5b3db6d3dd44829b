r"""The inner loop: what is adapted (:class:`InnerProblem`), how (:class:`AbstractInnerOptimizer`), and its one step.

An inner step :math:`k` maps fast weights and optimiser state :math:`(\theta_k, s_k)` to
:math:`(\theta_{k+1}, s_{k+1}) = U(\theta_k, s_k, g_k, \phi)` with :math:`g_k = \partial L_k / \partial \theta`
evaluated at :math:`\theta_k`.
Estimators only ever need two things of it: the gradient :math:`g_k` (a pass through the network, expensive) and the
update :math:`U` (element-wise, cheap). So an optimiser is one pure, differentiable function, and momentum, weight decay
or learned step sizes need no code in any estimator.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl import tensors
from mtl.tensors import Tensors

StepSize = float | Tensor | Mapping[str, Tensor]


class AbstractInnerOptimizer(abc.ABC):
    """One inner update as a pure function: no in-place change, differentiable in every argument."""

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
        if not callable(self.lr) and not self.lr > 0:
            raise ValueError(
                f"InnerSGD(lr={self.lr}): the inner step size must be positive; for no adaptation use num_steps=0"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"InnerSGD(momentum={self.momentum}): expected 0 <= momentum < 1")
        if self.weight_decay < 0:
            raise ValueError(f"InnerSGD(weight_decay={self.weight_decay}): expected a number >= 0")

    def init(self, weights: Tensors) -> Tensors:
        return tensors.zeros_like(weights) if self.momentum else {}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = self.lr(meta) if callable(self.lr) else self.lr
        direction = tensors.add(gradient, weights, self.weight_decay) if self.weight_decay else gradient
        if self.momentum:
            direction = state = tensors.add(direction, state, self.momentum)
        step = {k: (lr[k] if isinstance(lr, Mapping) else lr) * v for k, v in direction.items()}
        return tensors.add(weights, step, -1.0), state


@dataclass(frozen=True)
class InnerProblem:
    """A bilevel problem, batched over tasks. It knows nothing of images, ways or devices.

    Args:
        init: ``meta -> theta_0``; every fast weight has a leading task axis.
        inner_loss: ``(theta_k, meta, step) -> (tasks,)`` losses on the support set. Row ``t`` must depend on row ``t``
            of the fast weights only. It is evaluated more than once at a step, so its randomness must be keyed by
            ``step``.
        outer_loss: ``(theta_K, meta) -> (tasks,)`` losses on the query set.
        num_steps: K >= 0; with 0 the initial weights are used as they are (amortised adaptation).
        optimizer: how a step is taken.

    Raises:
        ValueError: when ``num_steps`` is negative.
    """

    init: Callable[[Tensors], Tensors]
    inner_loss: Callable[[Tensors, Tensors, int], Tensor]
    outer_loss: Callable[[Tensors, Tensors], Tensor]
    num_steps: int
    optimizer: AbstractInnerOptimizer = field(default_factory=InnerSGD)

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(
                f"InnerProblem(num_steps={self.num_steps}): expected 0 (no refinement) or more inner steps"
            )


@dataclass(frozen=True)
class Trajectory:
    """What the forward loop remembers: no graph, only numbers of the size of the fast weights.

    Args:
        weights: ``theta_0 .. theta_K``.
        states: optimiser states, the same length.
        gradients: the gradient applied at each of the K steps.
        evaluations: how many gradients were really evaluated.
    """

    weights: list[Tensors]
    states: list[Tensors]
    gradients: list[Tensors]
    evaluations: int


def inner_gradient(problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Tensors:
    """The plain gradient of the inner loss in the fast weights, outside every graph.

    Cost: one forward, one backward.
    """
    weights = tensors.leaf(weights)
    with torch.enable_grad():
        loss = problem.inner_loss(weights, tensors.detach(meta), step).sum()
    return tensors.grad(loss, weights)[0]


@torch.no_grad()
def run(problem: InnerProblem, meta: Tensors, reuse: int = 1) -> Trajectory:
    """Take the K inner steps without graph.

    Args:
        reuse: evaluate the gradient once per so many steps and apply it that often (lazy windows); 1 is ordinary
            descent.
    """
    meta = tensors.detach(meta)
    weights = tensors.detach(problem.init(meta))
    state = problem.optimizer.init(weights)
    trajectory = Trajectory([weights], [state], [], -(-problem.num_steps // reuse))
    for step in range(problem.num_steps):
        fresh = step % reuse == 0
        gradient = inner_gradient(problem, weights, meta, step) if fresh else trajectory.gradients[-1]
        weights, state = problem.optimizer.update(weights, state, gradient, meta)
        trajectory.weights.append(weights)
        trajectory.states.append(state)
        trajectory.gradients.append(gradient)
    return trajectory


@torch.no_grad()
def solve(problem: InnerProblem, meta: Tensors) -> Tensors:
    """The adapted weights ``theta_K``: what is wanted once meta-training is over. Remembers nothing of the way."""
    meta = tensors.detach(meta)
    weights = tensors.detach(problem.init(meta))
    state = problem.optimizer.init(weights)
    for step in range(problem.num_steps):
        gradient = inner_gradient(problem, weights, meta, step)
        weights, state = problem.optimizer.update(weights, state, gradient, meta)
    return weights
