"""Few-shot episodes from texts by class."""

from __future__ import annotations

from collections.abc import Sequence

from mtl.data.own.class_sampler import ClassSampler, EpisodeIndices
from mtl.data.own.ranges import IntOrRange
from mtl.data.own.texts.collection import TextCollection
from mtl.data.own.token_cache import TokenCache, Tokenise
from mtl.episode import Episode


class TextTasks:
    """Episodes over some classes of a collection; episode ``index`` depends on ``seed`` and ``index`` alone.

    Args:
        collection: from :func:`~mtl.data.own.texts.open_texts`.
        classes: names of the classes to draw from, such as ``split.train``; their order does not matter.
        preprocess: strings to tokens, such as the ``preprocess`` of a loaded text backbone; or a
            :class:`TokenCache` of one, which several sources may share.
        ways: classes per episode, at least 2.
        shots: support texts of each class, at least 1.
        queries: query texts of each class, at least 1, none of them in the support.
        seed: which sequence of episodes, at least 0.
        family: what kind of tasks they are, for results by family.

    Raises:
        ValueError: when classes are unknown, or too few for ``ways``, or too small for ``shots + queries``.
    """

    def __init__(
        self,
        collection: TextCollection,
        classes: Sequence[str],
        *,
        preprocess: Tokenise | TokenCache,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 15,
        seed: int = 0,
        family: str = "texts",
    ) -> None:
        self.collection = collection
        self.tokens = preprocess if isinstance(preprocess, TokenCache) else TokenCache(preprocess)
        self.family = family
        self._sampler = ClassSampler(
            collection, classes, ways=ways, shots=shots, queries=queries, seed=seed, noun="texts"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that episodes are drawn from, sorted."""
        return self._sampler.classes

    def draw(self, index: int) -> EpisodeIndices:
        """Which texts episode ``index`` holds, as positions in the collection."""
        return self._sampler.draw(index)

    def read(self, index: int) -> tuple[list[str], list[str], list[str]]:
        """Episode ``index`` for people: the names of its classes, its support texts and its query texts, by class."""
        draw = self.draw(index)
        shots = len(draw.support) // draw.ways
        class_of = {place: name for name in self.classes for place in self.collection.items[name]}
        names = [class_of[place] for place in draw.support[::shots]]
        support, query = ([self.collection.texts[i] for i in side] for side in (draw.support, draw.query))
        return names, support, query

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis.

        Support tokens are ``(1, ways * shots, length)`` each, query tokens ``(1, ways * queries, length)``; both are
        ordered by class and padded to the longest on their side.
        """
        draw = self.draw(index)
        support, query = (self.tokens([self.collection.texts[i] for i in side]) for side in (draw.support, draw.query))
        return draw.episode(support, query, self.family)
