"""Few-shot episodes from examples by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtl.data.own.class_sampler import ClassSampler, EpisodeIndices
from mtl.data.own.collection import AbstractCollection
from mtl.data.own.input_cache import InputCache, Preprocess
from mtl.data.own.ranges import IntOrRange
from mtl.episode import Episode


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
        self.collection = collection
        self.inputs = preprocess if isinstance(preprocess, InputCache) else InputCache(preprocess, cache_bytes)
        self.family = family or collection.noun
        self._sampler = ClassSampler(collection, classes, ways=ways, shots=shots, queries=queries, seed=seed)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that episodes are drawn from, sorted."""
        return self._sampler.classes

    def draw(self, index: int) -> EpisodeIndices:
        """Positions in the collection of the examples of episode ``index``."""
        return self._sampler.draw(index)

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
