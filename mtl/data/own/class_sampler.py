"""Choosing the examples of an episode: some classes of a collection, some examples of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mtl.data.own.collection import AbstractCollection
from mtl.data.own.ranges import IntOrRange, as_range
from mtl.episode import Episode, Examples, Inputs, RawInputs


@dataclass(frozen=True)
class EpisodeIndices:
    """Positions of an episode's examples, ordered by class: ``ways * shots`` and ``ways * queries``."""

    ways: int
    support: list[int]
    query: list[int]

    def episode(self, support: Inputs | RawInputs, query: Inputs | RawInputs, family: str) -> Episode:
        """The episode of these examples' inputs, alone on its task axis; labels count from 0 in the order of the draw.

        Args:
            support, query: ``(n, ...)``, or tokens by name.
            family: the kind of task.
        """
        sides = [(support, self.support), (query, self.query)]
        sets = [Examples(Inputs.of(inputs).with_task_axis(), self._labels(len(places))) for inputs, places in sides]
        return Episode(*sets, ways=self.ways, families=(family,))

    def _labels(self, examples: int) -> torch.Tensor:
        return torch.arange(self.ways).repeat_interleave(examples // self.ways)[None]


class ClassSampler:
    """Draws episodes; the draw of an index depends on ``seed`` and the index alone.

    Args:
        collection: the examples to draw from.
        classes: names of the classes to draw from; their order does not matter.
        ways, shots: per episode, a number or a range.
        queries: query examples of each class, none of them in the support.
        seed: which sequence of draws.

    Raises:
        ValueError: when classes are unknown, or too few for ``ways``, or too small for ``shots + queries``.
    """

    def __init__(
        self,
        collection: AbstractCollection,
        classes: Sequence[str],
        *,
        ways: IntOrRange,
        shots: IntOrRange,
        queries: int,
        seed: int,
    ) -> None:
        self.collection = collection
        self.classes = tuple(sorted(classes))
        self.ways = as_range("ways", ways, least=2)
        self.shots = as_range("shots", shots, least=1)
        self.queries = at_least(1, "queries", queries)
        self.seed = at_least(0, "seed", seed)
        self._check_classes()
        self._check_class_sizes()

    def draw(self, index: int) -> EpisodeIndices:
        """Draw number ``index`` (at least 0)."""
        rng = np.random.default_rng((self.seed, at_least(0, "index", index)))
        ways, shots = (int(rng.integers(low, high + 1)) for low, high in (self.ways, self.shots))
        support: list[int] = []
        query: list[int] = []
        for c in rng.choice(len(self.classes), ways, replace=False):
            members = self.collection.items[self.classes[c]]
            picks = [members[i] for i in rng.choice(len(members), shots + self.queries, replace=False)]
            support += picks[:shots]
            query += picks[shots:]
        return EpisodeIndices(ways, support, query)

    def _check_classes(self) -> None:
        known = self.collection.items
        if unknown := [c for c in self.classes if c not in known]:
            raise ValueError(f"classes {unknown} are not in {self.collection.source}; it has {list(known)}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)} repeats a class; name each once")
        have, need = len(self.classes), self.ways[1]
        if have < need:
            hint = f"use --ways {have}, or add classes" if have >= 2 else "add classes: an episode needs two"
            raise ValueError(f"ways={need} takes {need} classes in every episode and only {have} are given; {hint}")

    def _check_class_sizes(self) -> None:
        shots = self.shots[1]
        need = shots + self.queries
        noun, sizes = self.collection.noun, {c: len(self.collection.items[c]) for c in self.classes}
        if short := {c: n for c, n in sizes.items() if n < need}:
            listed = ", ".join(f"{c!r} has {n}" for c, n in short.items())
            raise ValueError(
                f"shots={shots} and queries={self.queries} take {need} {noun} of each class, and "
                f"{len(short)} of {len(sizes)} classes have fewer: {listed}; "
                f"{_fitting(min(short.values()), shots, self.queries)} leave these classes out, or add {noun}"
            )


def at_least(least: int, name: str, value: int) -> int:
    """Return the value if it is an integer of at least ``least``, else raise a ValueError."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    return value


def _fitting(examples: int, shots: int, queries: int) -> str:
    """Words for the largest ``shots`` and ``queries``, near those asked for, that fit into so many examples."""
    if examples < 2:
        return "a class of one example leaves nothing to judge it on:"
    shots = min(shots, max(1, examples // 2))
    return f"use --shots {shots} --queries {min(queries, examples - shots)},"
