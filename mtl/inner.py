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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl import tensors
from mtl.execution import Execution
from mtl.keeping import AbstractKeeper, Kept, OnDevice
from mtl.tensors import Tensors

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
    elements whose gradient is near zero, where a step of Adam is nearly a sign: a larger ``eps`` tames it.

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
        if not callable(self.lr) and not self.lr > 0:
            raise ValueError(f"InnerAdam(lr={self.lr}): the inner step size must be positive")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"InnerAdam(betas={self.betas}): expected two numbers, each 0 <= beta < 1")
        if not self.eps > 0:
            raise ValueError(f"InnerAdam(eps={self.eps}): expected a positive number; 1e-8 is Adam's own")

    def init(self, weights: Tensors) -> Tensors:
        zeros = tensors.zeros_like(weights)
        count = next(iter(weights.values())).new_zeros(())
        return {"step": count} | {f"m.{k}": v for k, v in zeros.items()} | {f"v.{k}": v for k, v in zeros.items()}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        lr = sizes_of(self.lr, meta, weights)
        b1, b2 = self.betas
        step = state["step"].detach() + 1
        new_weights, new_state = {}, {"step": step}
        for k, g in gradient.items():
            m = new_state[f"m.{k}"] = b1 * state[f"m.{k}"] + (1 - b1) * g
            v = new_state[f"v.{k}"] = b2 * state[f"v.{k}"] + (1 - b2) * g * g
            # The root has no derivative at zero; a weight that the loss never reads would turn it into NaN.
            root = (v / (1 - b2**step)).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
            new_weights[k] = weights[k] - lr[k] * m / (1 - b1**step) / (root + self.eps)
        return new_weights, new_state


INNER_OPTIMIZERS: dict[str, type[InnerSGD] | type[InnerAdam]] = {"sgd": InnerSGD, "adam": InnerAdam}
"""By name, for checkpoints."""


def sizes_of(lr: float | Callable[[Tensors], StepSize], meta: Tensors, like: Tensors) -> Mapping[str, float | Tensor]:
    """One step size per fast weight, however it was given."""
    found = lr(meta) if callable(lr) else lr
    return found if isinstance(found, Mapping) else dict.fromkeys(like, found)


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
        execution: how the network under the losses runs.
        keeper: where the states of the inner loop wait for the way back: :class:`mtl.OnHost` for large fast weights.

    Raises:
        ValueError: when ``num_steps`` is negative.
    """

    init: Callable[[Tensors], Tensors]
    inner_loss: Callable[[Tensors, Tensors, int], Tensor]
    outer_loss: Callable[[Tensors, Tensors], Tensor]
    num_steps: int
    optimizer: AbstractInnerOptimizer = field(default_factory=InnerSGD)
    execution: Execution = field(default_factory=Execution)
    keeper: AbstractKeeper = field(default_factory=OnDevice)

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
        reached: names of the meta-parameters on which the initial weights (``"init"``), the first inner loss
            (``"inner"``) and the last (``"last"``) depend.
    """

    weights: Sequence[Tensors]
    states: Sequence[Tensors]
    gradients: Sequence[Tensors]
    evaluations: int
    reached: dict[str, set[str]] = field(default_factory=dict)


def inner_gradient(
    problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, reached: set[str] | None = None
) -> Tensors:
    """The plain gradient of the inner loss in the fast weights, outside every graph.

    Cost: one forward, one backward.

    Args:
        reached: receives the names of the meta-parameters that the loss depends on, read off the graph.
    """
    weights = tensors.leaf(weights)
    meta = tensors.leaf(meta, requires_grad=reached is not None)
    with torch.enable_grad():
        loss = problem.inner_loss(weights, meta, step).sum()
    if reached is not None:
        reached |= tensors.reaches([loss], meta)
    return tensors.grad(loss, weights, magnitude=problem.execution.loss_scale)[0]


GradientAt = Callable[[Tensors, int], Tensors]
"""``(weights, step) -> gradient`` of the inner loss."""


@torch.no_grad()
def run(problem: InnerProblem, meta: Tensors, reuse: int = 1, gradient_at: GradientAt | None = None) -> Trajectory:
    """Take the K inner steps without graph.

    Args:
        reuse: evaluate the gradient once per so many steps and apply it that often (lazy windows); 1 is ordinary
            descent.
        gradient_at: how a gradient is evaluated, :func:`inner_gradient` by default.
    """
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        initial = problem.init(phi)
    reached = {"init": tensors.reaches(initial.values(), phi), "inner": (first := set[str]())}
    reached["last"] = first if problem.num_steps == 1 else set()
    watched = {0: first, problem.num_steps - 1: reached["last"]}
    meta, weights = tensors.detach(meta), tensors.detach(initial)
    del initial, phi  # their graph is of the size of an inner step's
    state = problem.optimizer.init(weights)
    weights_at, states, gradients = Kept(problem.keeper, [weights]), Kept(problem.keeper, [state]), Kept(problem.keeper)
    gradient: Tensors = {}
    for step in range(problem.num_steps):
        if step % reuse:
            gradients.repeat()
        else:
            if gradient_at is None:
                gradient = inner_gradient(problem, weights, meta, step, watched.get(step))
            else:
                gradient = gradient_at(weights, step)
            gradients.append(gradient)
        weights, state = problem.optimizer.update(weights, state, gradient, meta)
        weights_at.append(weights)
        states.append(state)
    return Trajectory(weights_at, states, gradients, -(-problem.num_steps // reuse), reached)


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
