"""Few-shot episodes from examples by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtl.data.own.collection import AbstractCollection
from mtl.data.own.grouped_draws import apart, separable
from mtl.data.own.input_cache import InputCache, Preprocess
from mtl.data.own.ranges import IntOrRange, as_range, at_least
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


class ClassTasks:
    """Episodes over some classes of a collection; episode ``index`` depends on ``seed`` and ``index`` alone.

    Args:
        collection: from :func:`~mtl.open_images` or :func:`~mtl.open_texts`, or one of your own kind.
        classes: names of the classes to draw from, such as ``split.train``; their order does not matter.
        preprocess: raw examples to inputs, such as the ``preprocess`` of a loaded backbone; or an
            :class:`~mtl.data.InputCache` of one, which several sources may share.
        ways: classes per episode, at least 2.
        shots: support examples of each class, at least 1.
        queries: query examples of each class, at least 1, none of them in the support.
        seed: which sequence of episodes, at least 0.
        family: the kind of tasks, for results by family; by default ``"images"`` or ``"texts"``.
        cache_bytes: memory for preprocessed examples, which return every epoch; the least recently used go first, and
            0 keeps none. A 3 x 224 x 224 float image takes 0.6 MB. Each loader worker has a cache of its own. A given
            :class:`~mtl.data.InputCache` has its own limit.

    Raises:
        ValueError: when classes are unknown, or too few for ``ways``, or too small for ``shots + queries``.
    """

    def __init__(
        self,
        collection: AbstractCollection,
        classes: Sequence[str],
        *,
        preprocess: Preprocess | InputCache,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 15,
        seed: int = 0,
        family: str | None = None,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.collection, self.classes = collection, tuple(sorted(classes))
        self.ways, self.shots = as_range("ways", ways, least=2), as_range("shots", shots, least=1)
        self.queries, self.seed = at_least(1, "queries", queries), at_least(0, "seed", seed)
        self._check_classes()
        self._check_class_sizes()
        self._check_groups()
        self.inputs = preprocess if isinstance(preprocess, InputCache) else InputCache(preprocess, cache_bytes)
        self.family = family or collection.noun

    def draw(self, index: int) -> EpisodeIndices:
        """Positions in the collection of the examples of episode ``index``."""
        rng = np.random.default_rng((self.seed, at_least(0, "index", index)))
        ways, shots = (int(rng.integers(low, high + 1)) for low, high in (self.ways, self.shots))
        if self.collection.groups:
            return self._draw_by_group(rng, ways, shots)
        support: list[int] = []
        query: list[int] = []
        for c in rng.choice(len(self.classes), ways, replace=False):
            members = self.collection.items[self.classes[c]]
            picks = [members[i] for i in rng.choice(len(members), shots + self.queries, replace=False)]
            support += picks[:shots]
            query += picks[shots:]
        return EpisodeIndices(ways, support, query)

    def _draw_by_group(self, rng: np.random.Generator, ways: int, shots: int, attempts: int = 100) -> EpisodeIndices:
        """Support and query of all classes come from different groups."""
        for _ in range(attempts):
            chosen = [self.classes[c] for c in rng.choice(len(self.classes), ways, replace=False)]
            members = [self.collection.items[name] for name in chosen]
            if sides := apart(rng, members, self.collection.groups, shots, self.queries):
                return EpisodeIndices(ways, *sides)
        raise ValueError(
            f"{self.family}: no draw of {ways} classes has {shots} support and {self.queries} query examples of each "
            "in different groups; use fewer --ways, --shots or --queries, or smaller groups"
        )

    def read(self, index: int) -> tuple[list[str], list[Any], list[Any]]:
        """Episode ``index`` for people: the names of its classes, its support examples and its queries, by class."""
        draw = self.draw(index)
        class_of = {position: name for name in self.classes for position in self.collection.items[name]}
        names = [class_of[position] for position in draw.support[:: len(draw.support) // draw.ways]]
        return names, self.collection.read(draw.support), self.collection.read(draw.query)

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis.

        Support inputs are ``(1, ways * shots, ...)``, query inputs ``(1, ways * queries, ...)``: images
        ``(..., C, H, W)``, or tokens by name ``(..., length)``, padded to the longest on their side. Both are ordered
        by class, and labels count from 0 in the order in which the classes were drawn.
        """
        draw = self.draw(index)
        support, query = (self.inputs(self.collection, side) for side in (draw.support, draw.query))
        return draw.episode(support, query, self.family)

    def identity(self) -> dict[str, Any]:
        """Settings, classes, contents and preprocessing; see :class:`~mtl.episode.Identified`."""
        drawn = self.collection.select({name: self.collection.items[name] for name in self.classes})
        return {
            "kind": "ClassTasks",
            "ways": list(self.ways),
            "shots": list(self.shots),
            "queries": self.queries,
            "seed": self.seed,
            "family": self.family,
            "classes": list(self.classes),
            "data": drawn.identity(),
            "preprocessing": self.inputs.identity(drawn),
        }

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
                f"{_fitting(min(short.values()), shots, self.queries)} leave these classes out (open the data with "
                f"min_per_class={need}), or add {noun}"
            )

    def _check_groups(self) -> None:
        shots, collection = self.shots[1], self.collection
        if bad := [c for c in self.classes if not separable(collection, c, shots, self.queries)]:
            raise ValueError(
                f"{len(bad)} of {len(self.classes)} classes have too few groups to draw {shots} support and "
                f"{self.queries} query {collection.noun} from different ones: {bad}; leave these classes out"
            )


def _fitting(examples: int, shots: int, queries: int) -> str:
    """Words for the largest ``shots`` and ``queries``, near those asked for, that fit into so many examples."""
    if examples < 2:
        return "a class of one example leaves nothing to judge it on:"
    shots = min(shots, max(1, examples // 2))
    return f"use --shots {shots} --queries {min(queries, examples - shots)},"
