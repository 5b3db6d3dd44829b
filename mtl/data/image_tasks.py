"""Few-shot episodes from people's own images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtl.data.images import ImageCollection
from mtl.data.ranges import Size, as_range
from mtl.episode import Episode, Examples

Preprocess = Callable[[list[Image.Image]], Tensor]
"""``n`` decoded images to ``(n, channels, height, width)`` floats, without randomness, as the backbone wants them."""


class ImageTasks:
    """Episodes over some classes of a collection; episode ``index`` depends on ``seed`` and ``index`` alone.

    Args:
        collection: from :func:`~mtl.data.images.open_images`.
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
        ways: Size = 5,
        shots: Size = 5,
        queries: int = 15,
        seed: int = 0,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.collection = collection
        self.classes = tuple(sorted(classes))
        self.ways = as_range("ways", ways, least=2)
        self.shots = as_range("shots", shots, least=1)
        self.queries = _at_least(1, "queries", queries)
        self.seed = _at_least(0, "seed", seed)
        self.preprocess = preprocess
        self._cache = _TensorCache(_at_least(0, "cache_bytes", cache_bytes))
        self._check_classes()
        self._check_class_sizes()

    def sample(self, index: int) -> Episode:
        """Episode ``index`` (at least 0), alone on its task axis.

        Support inputs are ``(1, ways * shots, C, H, W)``, query inputs ``(1, ways * queries, C, H, W)``; both are
        ordered by class, and labels count from 0 in the order in which the classes were drawn.
        """
        rng = np.random.default_rng((self.seed, _at_least(0, "index", index)))
        ways, shots = (int(rng.integers(low, high + 1)) for low, high in (self.ways, self.shots))
        support: list[int] = []
        query: list[int] = []
        for c in rng.choice(len(self.classes), ways, replace=False):
            images = self.collection.items[self.classes[c]]
            picks = [images[i] for i in rng.choice(len(images), shots + self.queries, replace=False)]
            support += picks[:shots]
            query += picks[shots:]
        tensors = self._tensors(support + query)
        parts = [(tensors[: len(support)], shots), (tensors[len(support) :], self.queries)]
        sets = [Examples(x[None], torch.arange(ways).repeat_interleave(per_class)[None]) for x, per_class in parts]
        return Episode(*sets, ways=ways, families=("images",))

    def _tensors(self, indices: list[int]) -> Tensor:
        """Preprocessed images, ``(n, C, H, W)``; those that are not in the cache are preprocessed in one call."""
        found = {i: t for i in indices if (t := self._cache.get(i)) is not None}
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
        sizes = {c: len(self.collection.items[c]) for c in self.classes}
        if short := {c: n for c, n in sizes.items() if n < need}:
            listed = ", ".join(f"{c!r} has {n}" for c, n in short.items())
            raise ValueError(
                f"shots={shots} and queries={self.queries} take {need} images of each class, and "
                f"{len(short)} of {len(sizes)} classes have fewer: {listed}; "
                f"{_fitting(min(short.values()), shots, self.queries)} leave these classes out, or add images"
            )


class _TensorCache:
    """Least recently used tensors by key, bounded in bytes. Prefetching threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._held: OrderedDict[int, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_TensorCache], tuple[int]]:
        # what goes to a loader worker is an empty cache, not gigabytes of images (and a lock cannot be pickled)
        return _TensorCache, (self.limit,)

    def get(self, key: int) -> Tensor | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: int, tensor: Tensor) -> None:
        with self._lock:
            if key in self._held or tensor.nbytes > self.limit:
                return
            self._held[key] = tensor
            self.size += tensor.nbytes
            while self.size > self.limit:
                self.size -= self._held.popitem(last=False)[1].nbytes


def _at_least(least: int, name: str, value: int) -> int:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    return value


def _fitting(images: int, shots: int, queries: int) -> str:
    """Words for the largest ``shots`` and ``queries``, near those asked for, that fit into so many images."""
    if images < 2:
        return "a class of one image leaves nothing to judge it on:"
    shots = min(shots, max(1, images // 2))
    return f"use --shots {shots} --queries {min(queries, images - shots)},"
