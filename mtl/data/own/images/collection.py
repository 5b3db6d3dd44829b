"""Images by class, decoded when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

Mode = Literal["RGB", "L"]


class Reader(Protocol):
    """Encoded images by position. Picklable, so that loader workers can hold one."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def open(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class ImageCollection:
    """Images by class, decoded when asked for.

    Args:
        source: where they came from, for messages.
        items: positions of the images of each class, at least one each; class names are sorted.
        reader: encoded images by position.
        mode: ``"RGB"``, or ``"L"`` for grey.
        parts: class names of train, val and test where the source came divided *by class*; otherwise empty. For
            ``given=`` of :func:`~mtl.data.own.splits.split_classes`.
        unreadable: names and reasons of the images that were skipped.
    """

    source: str
    items: Mapping[str, tuple[int, ...]]
    reader: Reader
    mode: Mode
    parts: Mapping[str, tuple[str, ...]]
    unreadable: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.items)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def image(self, index: int) -> Image.Image:
        """Decode the image at a position: upright, 8 bits, in :attr:`mode`.

        Raises:
            ValueError: naming an image that cannot be decoded.
        """
        try:
            with self.reader.open(index) as image:
                return _converted(image, self.mode)
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, ...
            raise ValueError(
                f"{self.reader.name(index)} cannot be decoded ({error}); remove it, "
                'or open the images with verify="decode", which finds such images up front'
            ) from error


def checked_mode(image: Image.Image) -> Image.Image:
    """Refuse what :meth:`ImageCollection.image` cannot convert."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    return image


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    """Upright, 8 bits, opaque. ``convert`` alone clips 16-bit pixels to white and uncovers transparent ones."""
    image = ImageOps.exif_transpose(checked_mode(image))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)
