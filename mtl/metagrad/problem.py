r"""The inner problem (:class:`InnerProblem`), its gradient, and its solution (:func:`solve`).

An inner step :math:`k` maps fast weights and optimiser state :math:`(\theta_k, s_k)` to
:math:`(\theta_{k+1}, s_{k+1}) = U(\theta_k, s_k, g_k, \phi)` with :math:`g_k = \partial L_k / \partial \theta`
evaluated at :math:`\theta_k`.
Estimators only ever need two things of it: the gradient :math:`g_k` (a pass through the network, expensive) and the
update :math:`U` (element-wise, cheap). So an optimiser is one pure, differentiable function, and momentum, weight decay
or learned step sizes need no code in any estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.execution import Execution
from mtl.metagrad.optimizers import AbstractInnerOptimizer, InnerSGD
from mtl.metagrad.storage import OnDevice, StateStorage
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class InnerProblem:
    """A bilevel problem, batched over tasks. It knows nothing of images, ways or devices.

    Every fast weight has a leading task axis, of one for a single problem: ``(tasks, ...)``. Both losses return one
    number per task. Meta-parameters have whatever shapes you like; all tasks may share them.

    Args:
        init: ``meta -> theta_0``, fast weights by name.
        inner_loss: ``(theta_k, meta, step) -> (tasks,)`` losses on the support set; with ``sample``, ``(theta_k, meta,
            step, drawn)``. Row ``t`` must depend on row ``t`` of the fast weights only. It is evaluated more than once
            at a step, so its randomness must be keyed by ``step``.
        outer_loss: ``(theta_K, meta) -> (tasks,)`` losses on the query set. One that needs a roll-out with
            ``theta_K`` makes it inside, under ``torch.no_grad()``.
        num_steps: K >= 0; with 0 the initial weights are used as they are (amortised adaptation).
        optimizer: takes a step.
        execution: what the network under the losses demands of a derivative; the default demands nothing.
        storage: keeps the states of the inner loop until the backward sweep: :class:`mtl.metagrad.OnHost` or
            :class:`mtl.metagrad.Regrouped` for large fast weights.
        sample: ``(theta_k, meta, step) -> drawn``, what a step draws with the *current* weights, such as the roll-out
            of a policy (on-policy learning): named tensors, which the inner loss gets as its fourth argument. It is
            called once per gradient of the inner loop, outside every graph; what it drew is stored and replayed in
            every later evaluation of that step, so derivatives hold the samples fixed.
        window_loss: ``(theta, meta, steps) -> (tasks,)``, the mean of the inner losses of a range of steps, all at the
            same weights, or of some of their examples. :class:`mtl.Windowed` (but for its lazy mode) linearises a
            window of more than one step at it. Without it, a window is linearised at the loss of its anchor's step
            alone, which says little about the others where every step has a minibatch of its own.

    Raises:
        ValueError: when ``num_steps`` is negative, or there are both ``sample`` and ``window_loss``.
    """

    init: Callable[[Tensors], Tensors]
    inner_loss: Callable[..., Tensor]
    outer_loss: Callable[[Tensors, Tensors], Tensor]
    num_steps: int
    optimizer: AbstractInnerOptimizer = field(default_factory=InnerSGD)
    execution: Execution = field(default_factory=Execution)
    storage: StateStorage = field(default_factory=OnDevice)
    sample: Callable[[Tensors, Tensors, int], Tensors] | None = None
    window_loss: Callable[[Tensors, Tensors, range], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(
                f"InnerProblem(num_steps={self.num_steps}): expected 0 (no refinement) or more inner steps"
            )
        if self.sample is not None and self.window_loss is not None:
            raise ValueError(
                "InnerProblem(sample=..., window_loss=...): expected one of them; what a step draws is known to "
                "inner_loss alone, so leave window_loss out"
            )


def draw(problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Tensors:
    """What a step draws with the current weights, outside every graph; nothing where the problem draws nothing."""
    if problem.sample is None:
        return {}
    with torch.no_grad():
        return tensors.detach(problem.sample(tensors.detach(weights), tensors.detach(meta), step))


def replaying(problem: InnerProblem, draws: Sequence[Tensors] | Mapping[int, Tensors]) -> InnerProblem:
    """The problem with its draws known, by step: its inner loss takes three arguments and replays them."""
    if problem.sample is None:
        return problem
    on_policy = problem.inner_loss
    return replace(problem, sample=None, inner_loss=lambda w, meta, step: on_policy(w, meta, step, draws[step]))


def inner_gradient(problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Tensors:
    """The plain gradient of the inner loss in the fast weights, outside every graph.

    Cost: one forward, one backward.
    """
    weights, meta = tensors.leaf(weights), tensors.leaf(meta, requires_grad=False)
    with torch.enable_grad():
        loss = problem.inner_loss(weights, meta, step).sum()
    return tensors.grad(loss, weights, magnitude=problem.execution.loss_scale)[0]


def solve(problem: InnerProblem, meta: Tensors) -> Tensors:
    """The adapted weights ``theta_K``, for use after meta-training. Keeps no state of the steps before.

    Works in :class:`torch.inference_mode` too, as long as the losses read no tensor that was made in it.
    """
    with torch.inference_mode(False), torch.no_grad():
        meta = {k: tensors.usable(v.detach()) for k, v in meta.items()}
        weights = tensors.detach(problem.init(meta))
        state = problem.optimizer.init(weights)
        for step in range(problem.num_steps):
            drawn = {step: draw(problem, weights, meta, step)}
            gradient = inner_gradient(replaying(problem, drawn), weights, meta, step)
            weights, state = problem.optimizer.update(weights, state, gradient, meta)
        return weights


T = TypeVar("T")


def without_overflow(
    problem: InnerProblem, compute: Callable[[InnerProblem], T], values: Callable[[T], Iterable[Tensor]]
) -> tuple[T, InnerProblem, bool]:
    """The result, the problem it is of, and whether its values are finite; in float16, at the largest loss scale that
    makes them so."""
    while True:
        found, execution = compute(problem), problem.execution
        finite = execution.all_finite(values(found))
        if finite or (lower := execution.at_lower_loss_scale()) is None:
            return found, problem, finite
        problem = replace(problem, execution=lower)
