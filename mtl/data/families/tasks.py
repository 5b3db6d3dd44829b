"""Episodes over many families, each as often as any other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mtl.data.families.divided import DividedFamilies
from mtl.data.own.class_tasks import ClassTasks
from mtl.data.own.collection import AbstractCollection
from mtl.data.own.grouped_draws import separable
from mtl.data.own.input_cache import InputCache, Preprocess
from mtl.data.own.ranges import IntOrRange, as_range, at_least
from mtl.episode import Episode

PAIR = 2  # episodes of a family in a row


class FamilyTasks:
    """Episodes of one part of divided families; ``Episode.families`` names the family of each.

    Families are balanced: of F families, episodes ``F r .. F r + F - 1`` have each once, in an order drawn anew for
    every ``r``. Episode ``index`` depends on the split, ``seed`` and ``index`` alone.

    Args:
        families: from :func:`~mtl.data.divide_families`.
        part: ``"train"``, ``"val"`` or ``"test"``.
        preprocess, ways, shots, queries, seed, cache_bytes: see :class:`~mtl.ClassTasks`. All families share a cache.
        only: glob patterns of the families to draw from; all of the part by default.

    Classes that are too small for ``shots + queries``, or have too few groups to keep the two apart, are left out;
    families with fewer than ``ways`` classes left as well; ``left_out`` says so in one line each. ``unseen`` names the
    families that no training sees.

    Raises:
        ValueError: no family of the part has enough classes.
    """

    def __init__(
        self,
        families: DividedFamilies,
        part: str,
        *,
        preprocess: Preprocess | InputCache,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 15,
        seed: int = 0,
        only: Sequence[str] = ("*",),
        cache_bytes: int = 2 << 30,
    ) -> None:
        if part not in families.parts:
            raise ValueError(f"part={part!r}: expected one of {', '.join(families.parts)}")
        inputs = preprocess if isinstance(preprocess, InputCache) else InputCache(preprocess, cache_bytes)
        sizes = {"ways": ways, "shots": shots, "queries": queries}
        most_ways, most_shots = as_range("ways", ways, least=2)[1], as_range("shots", shots, least=1)[1]
        self.seed = at_least(0, "seed", seed)
        self.sources: dict[str, ClassTasks] = {}
        left_out = []
        for name, collection in families.parts[part].items():
            if not any(fnmatchcase(name, pattern) for pattern in only):
                continue
            classes = [c for c in collection.items if separable(collection, c, most_shots, queries)]
            if missing := len(collection.items) - len(classes):
                left_out.append(_missing(name, collection, missing, most_shots, queries))
            if len(classes) < most_ways:
                left_out.append(f"{name}: left out of {part}, {len(classes)} classes for {most_ways} ways")
                continue
            own = _own_seed(seed, name)
            self.sources[name] = ClassTasks(collection, classes, preprocess=inputs, seed=own, family=name, **sizes)
        self.left_out = tuple(left_out)
        self.unseen = tuple(name for name in self.sources if name in families.unseen)
        if not self.sources:
            raise ValueError(
                f"no family has {most_ways} classes of {most_shots} + {queries} examples in {part!r}"
                f"{' (' + '; '.join(left_out) + ')' if left_out else ''}; use fewer --ways, --shots or --queries"
            )

    def identity(self) -> dict[str, Any]:
        """The identities of all families; see :class:`~mtl.episode.Identified`."""
        families = {name: tasks.identity() for name, tasks in self.sources.items()}
        return {"kind": "FamilyTasks", "seed": self.seed, "names": list(self.names), "families": families}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families."""
        return tuple(self.sources)

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis; see :meth:`mtl.ClassTasks.sample`."""
        return self.sources[self.family(index)].sample(index)

    def read(self, index: int) -> tuple[list[str], list[Any], list[Any]]:
        """Class names, support examples and queries of episode ``index``; see :meth:`mtl.ClassTasks.read`."""
        return self.sources[self.family(index)].read(index)

    def family(self, index: int) -> str:
        """The family of episode ``index``."""
        turn, place = divmod(at_least(0, "index", index), len(self.sources))
        return self.names[np.random.default_rng((self.seed, turn)).permutation(len(self.sources))[place]]


@dataclass(frozen=True)
class EvaluationTasks:
    """The same number of episodes of each family, two of a family at a time: as many as :attr:`episodes` in all.

    A chunk then holds two tasks of each of some families, so that controls find another task of the same kind, and of
    another kind.

    Args:
        tasks: the families.
        per_family: episodes of each.
    """

    tasks: FamilyTasks
    per_family: int

    @property
    def episodes(self) -> int:
        """For ``evaluate(..., episodes=tasks.episodes)``."""
        return self.per_family * len(self.tasks.sources)

    def identity(self) -> dict[str, Any]:
        """The identity of the families, and how many episodes of each; see :class:`~mtl.episode.Identified`."""
        return {"kind": "EvaluationTasks", "per_family": self.per_family, "tasks": self.tasks.identity()}

    def sample(self, index: int) -> Episode:
        """Episode ``index``, below :attr:`episodes`, alone on its task axis."""
        source, place = self._at(index)
        return source.sample(place)

    def read(self, index: int) -> tuple[list[str], list[Any], list[Any]]:
        """Class names, support examples and queries of episode ``index``; see :meth:`mtl.ClassTasks.read`."""
        source, place = self._at(index)
        return source.read(place)

    def _at(self, index: int) -> tuple[ClassTasks, int]:
        """The family of an episode, and its number in the family."""
        if not 0 <= index < self.episodes:
            raise ValueError(f"index={index}: expected one below {self.episodes}, the episodes of all families")
        families = len(self.tasks.names)
        first = index // (PAIR * families) * PAIR  # of a round in which every family has two episodes, or what is left
        size = min(PAIR, self.per_family - first)
        family, second = divmod(index - first * families, size)
        return self.tasks.sources[self.tasks.names[family]], first + second


def _missing(name: str, collection: AbstractCollection, count: int, shots: int, queries: int) -> str:
    why = "cannot keep them in separate groups" if collection.groups else "have fewer"
    return f"{name}: {count} of {len(collection.items)} classes left out, for {shots} + {queries} examples they {why}"


def _own_seed(seed: int, name: str) -> int:
    """A sequence of its own for each family, that the other families have no part in."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
