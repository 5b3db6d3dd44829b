"""The same image under several names, which support and query must not share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mtl.data.own.images.collection import Reader
from mtl.data.own.sources.listing import some


class ContentReader(Reader, Protocol):
    """Encoded images by position, and the bytes that they take."""

    def size(self, index: int) -> int: ...


def find_duplicates(reader: ContentReader, skipped: Container[int]) -> list[tuple[int, ...]]:
    """Positions of images with the same bytes, for each such image; in order. Only files of equal size are read."""
    by_size = _grouped([i for i in range(len(reader)) if i not in skipped], reader.size)
    candidates = [i for positions in by_size for i in positions]

    def digest(index: int) -> bytes:
        return hashlib.sha256(reader.contents(index)).digest()

    with ThreadPoolExecutor() as pool:
        digests = dict(zip(candidates, pool.map(digest, candidates, chunksize=64), strict=True))
    return sorted(same for positions in by_size for same in _grouped(positions, digests.__getitem__))


def _grouped(positions: Sequence[int], key: Callable[[int], Hashable]) -> list[tuple[int, ...]]:
    """Positions of equal key, where there are several."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for position in positions:
        found[key(position)].append(position)
    return [tuple(same) for same in found.values() if len(same) > 1]


def note_duplicates(reader: Reader, again: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """A note about images that are left out because another one is the same.

    Args:
        again: positions of an image and of the one that stays.
    """
    if not again:
        return ()
    pairs = some([f"{reader.name(i)} (as {reader.name(kept)})" for i, kept in again], most=3)
    return (f"{len(again)} images are the same as another one and are left out: {pairs}",)
