"""A sequence of images or texts from whatever people give."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from mtl.items.decoding import Mode, as_image, reason

Reads = Literal["images", "texts", "items"]
"""What a network reads; ``"items"`` where only its own preprocessing knows."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".gz", ".zip", ".xlsx")


class ItemError(ValueError):
    """An item that cannot be read.

    Args:
        place: its place among the items, from 0.
        why: what is wrong with it.
    """

    def __init__(self, place: int, why: str) -> None:
        super().__init__(f"item {place}: {why}")
        self.place, self.why = place, why

    def __reduce__(self) -> tuple[type[ItemError], tuple[int, str]]:
        return type(self), (self.place, self.why)


@runtime_checkable
class LabelledItems(Protocol):
    """What a collection of :func:`mtl.open_images` or :func:`mtl.open_texts` has; iterating it gives its items."""

    noun: str

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def of_class(self, name: str) -> list[Any]: ...


def as_items(given: Any, reads: Reads) -> Iterable[Any]:
    """The items that somebody means, one after the other.

    - An iterable (list, tuple, array of strings, pandas Series, generator, collection) holds one item each, and is
      consumed only as far as it is read.
    - A string is *one* text for a network that reads texts, and a path for one that reads images.
    - A path is one image, or all images in a folder, at any depth and in the order of their names.
    - A PIL image, bytes, or an array or tensor of one image are one image; an array ``(n, height, width, channels)``
      and a tensor ``(n, channels, height, width)`` hold n.

    Args:
        reads: what the network reads.

    Raises:
        ValueError: in one line, for what holds no items or could mean two things.

    >>> as_items("My package is late", "texts")
    ['My package is late']
    """
    if isinstance(given, str | os.PathLike):
        return _of_path(given) if reads == "images" else _texts_of(given) if reads == "texts" else [given]
    if isinstance(given, Image.Image | bytes | bytearray | memoryview | io.IOBase):
        if reads == "texts":
            raise ValueError(f"a {type(given).__name__} is no text; pass strings (bytes: data.decode())")
        return [given]
    if isinstance(given, np.ndarray | torch.Tensor):
        return _rows(given, reads)
    if isinstance(given, LabelledItems) and {given.noun, reads} == {"images", "texts"}:
        raise ValueError(f"a collection of {given.noun}, but this network reads {reads}")
    if isinstance(given, Iterable) and not _is_unordered(given):
        return given
    expected = {"images": "images, paths or a folder", "texts": "strings", "items": "items"}[reads]
    raise ValueError(f"expected a list of {expected}, or one of them; got {_described(given)}")


def as_images(given: Any, mode: Mode = "RGB") -> list[Image.Image]:
    """Decode images; see :func:`as_items` and :func:`~mtl.items.as_image`.

    Warns that a network which reads grey images sees no colours, if there are some.

    Raises:
        ItemError: naming the first item, by its place, that is no image.
        ValueError: there is none.
    """
    images: list[Image.Image] = []
    for place, item in enumerate(as_items(given, "images")):
        try:
            images.append(as_image(item))
        except ValueError as error:
            raise ItemError(place, str(error)) from error
    if mode == "L" and any(map(_is_coloured, images)):
        warnings.warn("images in colour for a network that reads grey ones: their colours are lost", stacklevel=3)
    return _some([image.convert(mode) for image in images], "image")


def as_texts(given: Any) -> list[str]:
    """Texts as strings; see :func:`as_items`. In a list, a path object stands for the text in that file.

    Raises:
        ItemError: naming the first item, by its place, that is no text.
        ValueError: there is none.
    """
    texts = []
    for place, item in enumerate(as_items(given, "texts")):
        if isinstance(item, str):
            texts.append(str(item))
        elif isinstance(item, os.PathLike):
            texts.append(_file_text(place, Path(item)))
        else:
            nan = isinstance(item, float) and math.isnan(item)
            found = "a missing value" if item is None or nan else f"a {type(item).__name__}"
            raise ItemError(place, f"{found}, but this network reads texts; pass strings")
    return _some(texts, "text")


def image_files(folder: str | Path) -> list[Path]:
    """The images in a folder, at any depth, in the order of their names; hidden files do not count.

    Warns of files that go by other suffixes than :data:`IMAGE_SUFFIXES`.

    Raises:
        ValueError: there is none.
    """
    folder = Path(folder).expanduser()
    found = [p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    images = sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES)
    others = Counter(p.suffix or "no suffix" for p in found if p.suffix.lower() not in IMAGE_SUFFIXES and p.is_file())
    if not images:
        raise ValueError(f"{folder}: no image there; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if others:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(5))
        warnings.warn(f"{folder}: {others.total()} files are left out, which are no images ({counts})", stacklevel=2)
    return images


def _is_coloured(image: Image.Image) -> bool:
    """Judged by a few pixels; more than a camera's noise."""
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST))
    return bool((np.ptp(pixels, -1) > 48).any())


def _of_path(given: str | os.PathLike[str]) -> Iterable[Any]:
    path = Path(given).expanduser()
    if os.path.isdir(path):
        return image_files(path)
    if path.name.lower().endswith(_TABLES):
        raise ValueError(f"{path} is a table or an archive, not an image; open it with mtl.open_images")
    return [given]


def _texts_of(given: str | os.PathLike[str]) -> Iterable[Any]:
    """One text; a path, or what looks like one and is there, could mean two things."""
    path = Path(given)
    if isinstance(given, str):
        like_a_path = path.suffix.lower() in (*_TABLES, ".txt") or os.sep in given
        if not (like_a_path and os.path.exists(given)):
            return [given]
    raise ValueError(
        f"{path} is a path: pass mtl.data.read_texts({str(path)!r}) for the texts in it, "
        f"or [{str(path)!r}] for these very words"
    )


def _rows(given: np.ndarray | torch.Tensor, reads: Reads) -> Iterable[Any]:
    """The items of an array."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "OSUT":
        return given.reshape(-1).tolist() if given.ndim < 2 else _refused(given, "one axis of items")
    if reads == "texts":
        return _refused(given, "strings; token tensors go in by name, with a task axis")
    if reads == "items":
        return list(given)
    channels = -1 if isinstance(given, np.ndarray) else 0
    if given.ndim == 2 or (given.ndim == 3 and given.shape[channels] in (1, 2, 3, 4)):
        return [given]
    if given.ndim == 4:
        return given  # row by row, each a view
    axes = "(n, height, width, channels)" if channels else "(n, channels, height, width)"
    return _refused(given, f"{axes} or one image without the n; several grey ones as a list")


def _refused(given: np.ndarray | torch.Tensor, expected: str) -> Iterable[Any]:
    raise ValueError(f"an array of shape {tuple(given.shape)} and {given.dtype}: expected {expected}")


def _is_unordered(given: Any) -> bool:
    """Whether items would come in an order that nobody knows, or be names of columns."""
    is_table = type(given).__name__ in ("DataFrame", "LazyFrame")
    return is_table or isinstance(given, set | frozenset | Mapping)


def _described(given: Any) -> str:
    if isinstance(given, set | frozenset):
        return "a set, which has no order: list(it)"
    if type(given).__name__ == "DataFrame":
        return "a whole table: pass one of its columns"
    return "None" if given is None else f"a {type(given).__name__}"


def _file_text(place: int, path: Path) -> str:
    if path.name.lower().endswith(_TABLES):
        raise ItemError(place, f"{path} is a table or an archive, not one text; read it with mtl.data.read_texts")
    try:
        return path.expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ItemError(place, f"{path} cannot be read ({reason(error)}); expected a text file in UTF-8") from error


def _some(found: list[Any], noun: str) -> list[Any]:
    if not found:
        raise ValueError(f"no {noun} was given; expected at least one")
    return found
