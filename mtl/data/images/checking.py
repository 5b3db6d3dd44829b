"""From a listing to a collection: what cannot be read, and classes that are left with nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from mtl.data.images.collection import ImageCollection, Mode, Reader, checked_mode
from mtl.data.images.listing import Listing
from mtl.data.splits import disjoint_parts


def checked_collection(listing: Listing, mode: Mode, verify: str, on_unreadable: str) -> ImageCollection:
    """The readable images by class; the caller of the caller is warned of the others."""
    bad = {} if verify == "off" else _unreadable(listing.reader, decode=verify == "decode")
    reasons = tuple(f"{listing.reader.name(i)} ({reason})" for i, reason in bad.items())
    if reasons:
        told = f"{len(reasons)} of {len(listing.labels)} images of {listing.source} cannot be read: {_some(reasons)}"
        if on_unreadable == "raise":
            raise ValueError(f'{told}; remove them, or skip them with on_unreadable="skip"')
        warnings.warn(f"{told}; they are skipped", stacklevel=3)
    items: dict[str, list[int]] = {label: [] for label in sorted(set(listing.labels))}
    for i, label in enumerate(listing.labels):
        if i not in bad:
            items[label].append(i)
    if len(items) < 2:
        raise ValueError(
            f"{listing.source} has {len(items)} classes, {list(items)}; few-shot episodes need two at least"
        )
    if empty := [label for label, indices in items.items() if not indices]:
        raise ValueError(f"no image of these classes of {listing.source} can be read: {empty}; repair or remove them")
    parts = disjoint_parts(listing.parts, listing.labels, listing.source)
    frozen = {label: tuple(indices) for label, indices in items.items()}
    return ImageCollection(listing.source, frozen, listing.reader, mode, parts, reasons)


def _unreadable(reader: Reader, decode: bool) -> dict[int, str]:
    """Reasons by position. Threads, because Pillow releases the lock while it reads and decodes."""
    count = len(reader)
    found: dict[int, str] = {}
    # by the chunk, because a million futures take a gigabyte
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    with ThreadPoolExecutor() as pool, tqdm(total=count, desc="checking images", disable=count <= 500) as bar:
        for chunk, reasons in zip(chunks, pool.map(partial(_reasons, reader, decode), chunks), strict=True):
            found |= {i: reason for i, reason in zip(chunk, reasons, strict=True) if reason}
            bar.update(len(chunk))
    return found


def _reasons(reader: Reader, decode: bool, indices: Iterable[int]) -> list[str]:
    return [_reason(reader, decode, i) for i in indices]


def _reason(reader: Reader, decode: bool, index: int) -> str:
    """Why an image cannot be read; empty when it can."""
    try:
        with reader.open(index) as image:
            checked_mode(image)
            if decode:
                image.load()
            else:
                image.verify()
    except Exception as error:  # see ImageCollection.image
        return str(error) or type(error).__name__
    return ""


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
