"""Few-shot episodes from people's own images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from mtl.data.own.class_sampler import ClassSampler, at_least
from mtl.data.own.images import ImageCollection
from mtl.data.own.ranges import IntOrRange
from mtl.data.own.row_cache import RowCache
from mtl.episode import Episode

Preprocess = Callable[[list[Image.Image]], Tensor]
"""``n`` decoded images to ``(n, channels, height, width)`` floats, without randomness, as the backbone wants them."""


class ImageTasks:
    """Episodes over some classes of a collection; episode ``index`` depends on ``seed`` and ``index`` alone.

    Args:
        collection: from :func:`~mtl.data.own.images.open_images`.
        classes: names of the classes to draw from, such as ``split.train``; their order does not matter.
        preprocess: see :data:`Preprocess`.
        ways: classes per episode, at least 2.
        shots: support images of each class, at least 1.
        queries: query images of each class, at least 1, none of them in the support.
        seed: which sequence of episodes, at least 0.
        cache_bytes: memory for preprocessed images, which return every epoch; the least recently used go first, and 0
            keeps none. A 3 x 224 x 224 float image takes 0.6 MB. Each loader worker has a cache of its own.

    Raises:
        ValueError: when classes are unknown, or too few for ``ways``, or too small for ``shots + queries``.
    """

    def __init__(
        self,
        collection: ImageCollection,
        classes: Sequence[str],
        *,
        preprocess: Preprocess,
        ways: IntOrRange = 5,
        shots: IntOrRange = 5,
        queries: int = 15,
        seed: int = 0,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.collection = collection
        self.preprocess = preprocess
        self._sampler = ClassSampler(
            collection, classes, ways=ways, shots=shots, queries=queries, seed=seed, noun="images"
        )
        self._cache = RowCache(at_least(0, "cache_bytes", cache_bytes))

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis.

        Support inputs are ``(1, ways * shots, C, H, W)``, query inputs ``(1, ways * queries, C, H, W)``; both are
        ordered by class, and labels count from 0 in the order in which the classes were drawn.
        """
        draw = self._sampler.draw(index)
        tensors = self._tensors(draw.support + draw.query)
        return draw.episode(tensors[: len(draw.support)], tensors[len(draw.support) :], "images")

    def _tensors(self, indices: list[int]) -> Tensor:
        """Preprocessed images, ``(n, C, H, W)``; those that are not in the cache are preprocessed in one call."""
        found = {i: t for i in indices if isinstance(t := self._cache.get(i), Tensor)}
        missing = [i for i in indices if i not in found]
        if missing:
            found |= zip(missing, self._preprocessed(missing), strict=True)
        return torch.stack([found[i] for i in indices])

    def _preprocessed(self, indices: list[int]) -> list[Tensor]:
        out = self.preprocess([self.collection.image(i) for i in indices])
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() != 4 or len(out) != len(indices):
            got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"preprocess turned {len(indices)} images into {got}; expected floats "
                f"({len(indices)}, channels, height, width), such as the preprocess of a loaded backbone returns"
            )
        # copies: a view would keep the whole batch alive after its neighbours have left the cache
        rows = [row.detach().clone() for row in out]
        for i, row in zip(indices, rows, strict=True):
            self._cache.put(i, row)
        return rows
