"""The inner loop without a graph, and the record of it that estimators walk back through (:func:`unroll`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem, draw, inner_gradient, replaying
from mtl.metagrad.storage import AbstractSteps, OnDevice, StateStorage, StoredStates
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Trajectory:
    """Record of the inner loop: no graph, only numbers of the size of the fast weights.

    Args:
        weights: ``theta_0 .. theta_K``.
        states: optimiser states, the same length.
        gradients: the gradient applied at each of the K steps.
        evaluations: number of gradients that were evaluated.
        reached: names of the meta-parameters on which the initial weights (``"init"``), the first inner loss
            (``"inner"``), the last (``"last"``) and, once it is known, the outer loss (``"outer"``) depend.
        draws: what each of the K steps drew, see :class:`InnerProblem`.
        reuse: steps that share a gradient.
    """

    weights: Sequence[Tensors]
    states: Sequence[Tensors]
    gradients: Sequence[Tensors]
    evaluations: int
    reached: dict[str, set[str]] = field(default_factory=dict)
    draws: Sequence[Tensors] = ()
    reuse: int = 1

    def fresh(self, step: int) -> bool:
        """Whether the gradient applied at a step was evaluated at that step's weights."""
        return 0 <= step < len(self.gradients) and step % self.reuse == 0


GradientAt = Callable[[InnerProblem, Tensors, int], Tensors]
"""``(problem, weights, step) -> gradient`` of the inner loss; the problem replays what the step drew."""


@torch.no_grad()
def unroll(problem: InnerProblem, meta: Tensors, reuse: int = 1, gradient_at: GradientAt | None = None) -> Trajectory:
    """Take the K inner steps without graph.

    Args:
        reuse: evaluate the gradient once per so many steps and apply it that often (lazy windows); 1 is ordinary
            descent.
        gradient_at: evaluates a gradient, :func:`inner_gradient` by default.
    """
    meta, every = tensors.detach(meta), problem.storage.every
    if every is not None:  # a window lies in one group
        every = reuse * -(-(every or max(1, math.isqrt(problem.num_steps))) // reuse)
    count = problem.num_steps + 1 if every is None else -(-problem.num_steps // every) + 1
    weights, states = StoredStates(problem.storage, count), StoredStates(problem.storage, count)
    reached = {"init": _begin(problem, meta, weights, states), "inner": set(), "last": set()}
    evaluations = -(-problem.num_steps // reuse)
    drawn = StoredStates(problem.storage, evaluations)
    draws = _Repeated(drawn, reuse, problem.num_steps)
    replayed = replaying(problem, draws)

    def first_time(weights: Tensors, step: int) -> Tensors:
        drawn.append(draw(problem, weights, meta, step))
        ends = [end for end, at in (("inner", 0), ("last", problem.num_steps - 1)) if at == step]
        if gradient_at is not None:
            return gradient_at(replayed, weights, step)
        if not ends:
            return inner_gradient(replayed, weights, meta, step)
        gradient, names = _gradient_and_reached(replayed, weights, meta, step)
        reached.update(dict.fromkeys(ends, names))
        return gradient

    walk = _walk(problem, meta, (weights[0], states[0]), range(problem.num_steps), reuse, first_time)
    if every is None:
        found = _record(walk, weights, states, problem.num_steps, reuse, problem.storage)
        return Trajectory(found.weights, found.states, found.gradients, evaluations, reached, draws, reuse)

    def again(number: int, steps: range) -> _Record:
        near = StoredStates(OnDevice(), len(steps) + 1), StoredStates(OnDevice(), len(steps) + 1)
        near[0].append(weights[number])
        near[1].append(states[number])
        gradient = lambda weights, step: inner_gradient(replayed, weights, meta, step)  # noqa: E731
        walk = _walk(problem, meta, (near[0][0], near[1][0]), steps, reuse, gradient)
        return _record(walk, *near, len(steps), reuse, OnDevice())

    for step, (_, point) in enumerate(walk, 1):
        if step % every == 0 or step == problem.num_steps:
            weights.append(point[0])
            states.append(point[1])
    groups = _Groups(weights, states, problem.num_steps, every, again)
    columns = groups.column("weights"), groups.column("states"), groups.column("gradients")
    return Trajectory(*columns, evaluations, reached, draws, reuse)


def _begin(problem: InnerProblem, meta: Tensors, weights: StoredStates, states: StoredStates) -> set[str]:
    """Store the initial weights and state; the names of the meta-parameters that the weights depend on.

    They go when this returns, and so does their graph, which is of the size of an inner step's.
    """
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        initial = problem.init(phi)
    detached = tensors.detach(initial)
    weights.append(detached)
    states.append(problem.optimizer.init(detached))
    return tensors.reaches(initial.values(), phi)


_Point = tuple[Tensors, Tensors]
"""Weights and optimiser state before a step."""


def _walk(
    problem: InnerProblem,
    meta: Tensors,
    start: _Point,
    steps: range,
    reuse: int,
    gradient_at: Callable[[Tensors, int], Tensors],
) -> Iterator[tuple[Tensors | None, _Point]]:
    """The inner steps one by one: the gradient where it is a new one, and where the step has led."""
    (weights, state), gradient = start, {}
    del start  # or it would stay as long as the walk
    for step in steps:
        new = step % reuse == 0
        gradient = gradient_at(weights, step) if new else gradient
        weights, state = problem.optimizer.update(weights, state, gradient, meta)
        yield gradient if new else None, (weights, state)


@dataclass(frozen=True)
class _Record:
    """All of some consecutive steps: one gradient fewer than weights and states."""

    weights: Sequence[Tensors]
    states: Sequence[Tensors]
    gradients: Sequence[Tensors]


def _record(
    walk: Iterable[tuple[Tensors | None, _Point]],
    weights: StoredStates,
    states: StoredStates,
    length: int,
    reuse: int,
    storage: StateStorage,
) -> _Record:
    """Store where each step leads, behind the start, and the gradients."""
    gradients = StoredStates(storage, -(-length // reuse))
    for gradient, (new_weights, new_state) in walk:
        if gradient is not None:
            gradients.append(gradient)
        weights.append(new_weights)
        states.append(new_state)
    return _Record(weights, states, _Repeated(gradients, reuse, length))


class _Repeated(AbstractSteps):
    """Every item so many times, ``length`` of them in all."""

    def __init__(self, items: Sequence[Tensors], times: int, length: int) -> None:
        self._items, self._times, self._length = items, times, length

    def __len__(self) -> int:
        return self._length

    def at(self, step: int) -> Tensors:
        return self._items[step // self._times]


_Name = Literal["weights", "states", "gradients"]


class _Groups:
    """Steps of which the first of each group is stored; the two groups looked at last are there in full.

    Args:
        weights, states: of the first step of each group, and of the end.
        length: steps in all.
        every: steps in a group.
        again: takes the steps of a group, by its number, once more.
    """

    def __init__(
        self,
        weights: StoredStates,
        states: StoredStates,
        length: int,
        every: int,
        again: Callable[[int, range], _Record],
    ) -> None:
        self._weights, self._states = weights, states
        self._length, self._every, self._again = length, every, again
        self._there: dict[int, _Record] = {}

    def column(self, name: _Name) -> _Column:
        return _Column(self, name, self._length + (name != "gradients"))

    def look(self, name: _Name, step: int) -> Tensors:
        """What there is of a step: weights and states of the end too."""
        number, within = divmod(step, self._every)
        if name != "gradients" and (within == 0 or step == self._length):
            stored = self._weights if name == "weights" else self._states
            return stored[-1 if step == self._length else number]
        if number not in self._there:
            while len(self._there) > 1:
                del self._there[next(iter(self._there))]
            first = number * self._every
            steps = range(first, min(first + self._every, self._length))
            with torch.no_grad():
                self._there[number] = self._again(number, steps)
        return getattr(self._there[number], name)[within]


class _Column(AbstractSteps):
    """One kind of state of grouped steps."""

    def __init__(self, groups: _Groups, name: _Name, length: int) -> None:
        self._groups, self._length = groups, length
        self._name: _Name = name

    def __len__(self) -> int:
        return self._length

    def at(self, step: int) -> Tensors:
        return self._groups.look(self._name, step)


def _gradient_and_reached(
    problem: InnerProblem, weights: Tensors, meta: Tensors, step: int
) -> tuple[Tensors, set[str]]:
    """The gradient, and the names of the meta-parameters that the loss depends on, read off its graph."""
    weights, meta = tensors.leaf(weights), tensors.leaf(meta)
    with torch.enable_grad():
        loss = problem.inner_loss(weights, meta, step).sum()
    reached = tensors.reaches([loss], meta)
    return tensors.grad(loss, weights, magnitude=problem.execution.loss_scale)[0], reached
