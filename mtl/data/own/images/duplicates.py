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
    """Encoded images by position, and what shows cheaply that two of them differ."""

    def likeness(self, index: int) -> Hashable:
        """The same for images of the same bytes, such as their number."""
        ...


def find_duplicates(reader: ContentReader, skipped: Container[int]) -> list[tuple[int, ...]]:
    """Positions of images with the same bytes, for each such image; in order. Only images that are alike are read."""
    alike = _grouped([i for i in range(len(reader)) if i not in skipped], reader.likeness)
    candidates = [i for positions in alike for i in positions]

    def digest(index: int) -> bytes:
        return hashlib.sha256(reader.contents(index)).digest()

    with ThreadPoolExecutor() as pool:
        digests = dict(zip(candidates, pool.map(digest, candidates, chunksize=64), strict=True))
    return sorted(same for positions in alike for same in _grouped(positions, digests.__getitem__))


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
