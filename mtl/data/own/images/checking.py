"""From a listing to a collection: finding unreadable images and empty classes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mtl.data.own.images.collection import ImageCollection, Reader
from mtl.data.own.images.duplicates import ContentReader, find_duplicates, note_duplicates
from mtl.data.own.sources.listing import Listing, one_line
from mtl.items import RANGE_IN_PIXELS, Mode, as_image, reason
from mtl.tools.progress import ProgressBar


def check_collection(
    listing: Listing[ContentReader], mode: Mode, verify: str, on_unreadable: str, min_per_class: int
) -> ImageCollection:
    """The readable images by class, each once; the caller of the caller is warned of those that cannot be used."""
    reader = listing.examples
    bad = {} if verify == "off" else find_unreadable(reader, decode=verify == "decode")
    same = [] if verify == "off" else find_duplicates(reader, bad)
    again: list[tuple[int, int]] = []
    for first, *others in same:
        classes = sorted({listing.labels[i] for i in (first, *others)})
        if len(classes) > 1:
            bad |= {i: f"the same image is in {' and '.join(map(repr, classes))}" for i in (first, *others)}
        else:
            again += [(i, first) for i in others]
    reasons = tuple(f"{reader.name(i)} ({reason})" for i, reason in sorted(bad.items()))
    warned = listing.warn_of(reasons, "image", on_unreadable)
    items, small = listing.by_class({*bad, *(i for i, _ in again)}, "image", min_per_class)
    notes = (*listing.notes, *warned, *note_duplicates(reader, again), *small)
    return ImageCollection(
        listing.source, items, reader, mode, parts=listing.divided(items), skipped=reasons, notes=notes
    )


def find_unreadable(reader: Reader, decode: bool) -> dict[int, str]:
    """Reasons by position. Threads, because Pillow releases the lock while it reads and decodes."""
    count = len(reader)
    found: dict[int, str] = {}
    # by the chunk, because a million futures take a gigabyte
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    with ThreadPoolExecutor() as pool, ProgressBar(total=count, desc="checking images", show=count > 500) as bar:
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
            if decode or image.mode in RANGE_IN_PIXELS:
                as_image(image)
            else:
                image.verify()
    except Exception as error:  # see as_image
        return one_line(reason(error))
    return ""
