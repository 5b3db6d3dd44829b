"""The inner loop without a graph, and the record of it that estimators walk back through (:func:`unroll`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, overload

import torch

from mtl.metagrad import tensors
from mtl.metagrad.problem import InnerProblem, draw, inner_gradient, replaying
from mtl.metagrad.storage import OnDevice, StateStorage, StoredStates
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
    phi = tensors.leaf(meta)
    with torch.enable_grad():
        initial = problem.init(phi)
    reached: dict[str, set[str]] = {"init": tensors.reaches(initial.values(), phi), "inner": set(), "last": set()}
    meta, weights = tensors.detach(meta), tensors.detach(initial)
    del initial, phi  # their graph is of the size of an inner step's
    start = weights, problem.optimizer.init(weights)
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

    every = problem.storage.every
    if every is None:
        steps = range(problem.num_steps)
        found = _record(_walk(problem, meta, start, steps, reuse, first_time), start, steps, reuse, problem.storage)
        return Trajectory(found.weights, found.states, found.gradients, evaluations, reached, draws, reuse)

    def again(start: _Point, steps: range) -> _Record:
        gradient = lambda weights, step: inner_gradient(replayed, weights, meta, step)  # noqa: E731
        return _record(_walk(problem, meta, start, steps, reuse, gradient), start, steps, reuse, OnDevice())

    every = reuse * -(-(every or max(1, math.isqrt(problem.num_steps))) // reuse)  # a window lies in one group
    walk = _walk(problem, meta, start, range(problem.num_steps), reuse, first_time)
    groups = _Groups(walk, start, every, problem, again)
    weights, states, gradients = (groups.column(name) for name in ("weights", "states", "gradients"))
    return Trajectory(weights, states, gradients, evaluations, reached, draws, reuse)


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
    walk: Iterable[tuple[Tensors | None, _Point]], start: _Point, steps: range, reuse: int, storage: StateStorage
) -> _Record:
    weights, states = StoredStates(storage, len(steps) + 1), StoredStates(storage, len(steps) + 1)
    gradients = StoredStates(storage, -(-len(steps) // reuse))
    weights.append(start[0])
    states.append(start[1])
    for gradient, (new_weights, new_state) in walk:
        if gradient is not None:
            gradients.append(gradient)
        weights.append(new_weights)
        states.append(new_state)
    return _Record(weights, states, _Repeated(gradients, reuse, len(steps)))


class _Repeated(Sequence[Tensors]):
    """Every item so many times, ``length`` of them in all."""

    def __init__(self, items: Sequence[Tensors], times: int, length: int) -> None:
        self._items, self._times, self._length = items, times, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | list[Tensors]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._length)[index]]
        return self._items[range(self._length)[index] // self._times]


class _Groups:
    """Steps of which the first of each group is stored; the two groups looked at last are there in full."""

    def __init__(
        self,
        walk: Iterable[tuple[Tensors | None, _Point]],
        start: _Point,
        every: int,
        problem: InnerProblem,
        again: Callable[[_Point, range], _Record],
    ) -> None:
        self._every, self._length, self._again = every, problem.num_steps, again
        count = -(-self._length // every) + 1
        self._weights, self._states = StoredStates(problem.storage, count), StoredStates(problem.storage, count)
        self._there: dict[int, _Record] = {}
        for step, (_, point) in enumerate(chain([(None, start)], walk)):
            if step % every == 0 or step == self._length:
                self._weights.append(point[0])
                self._states.append(point[1])

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
                self._there[number] = self._again((self._weights[number], self._states[number]), steps)
        return getattr(self._there[number], name)[within]


_Name = Literal["weights", "states", "gradients"]


class _Column(Sequence[Tensors]):
    """One kind of state of grouped steps."""

    def __init__(self, groups: _Groups, name: _Name, length: int) -> None:
        self._groups, self._name, self._length = groups, name, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | list[Tensors]:
        if isinstance(index, slice):
            return [self[i] for i in range(self._length)[index]]
        return self._groups.look(self._name, range(self._length)[index])


def _gradient_and_reached(
    problem: InnerProblem, weights: Tensors, meta: Tensors, step: int
) -> tuple[Tensors, set[str]]:
    """The gradient, and the names of the meta-parameters that the loss depends on, read off its graph."""
    weights, meta = tensors.leaf(weights), tensors.leaf(meta)
    with torch.enable_grad():
        loss = problem.inner_loss(weights, meta, step).sum()
    reached = tensors.reaches([loss], meta)
    return tensors.grad(loss, weights, magnitude=problem.execution.loss_scale)[0], reached
