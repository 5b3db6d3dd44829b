"""Images by class, decoded on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from PIL import Image

from mtl.data.own.collection import AbstractCollection
from mtl.episode import Inputs
from mtl.items import Mode, as_image, reason
from mtl.tools.identity import digest


class Reader(Protocol):
    """Encoded images by position. Picklable, so that loader workers can hold one."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def open(self, index: int) -> Image.Image: ...
    def contents(self, index: int) -> bytes:
        """The encoded image."""
        ...


@dataclass(frozen=True, eq=False)
class ImageCollection(AbstractCollection):
    """Images by class, decoded on demand; see :class:`~mtl.data.own.collection.AbstractCollection`.

    Args:
        reader: encoded images by position.
        mode: ``"RGB"``, or ``"L"`` for grey.
    """

    noun: ClassVar[str] = "images"
    expected: ClassVar[str] = "floats (n, channels, height, width)"

    reader: Reader
    mode: Mode

    def read(self, positions: Sequence[int]) -> list[Image.Image]:
        """Decode the images at these positions."""
        return [self.image(position) for position in positions]

    def identity_of_example(self, position: int) -> str:
        """Path, size and time of change of the file, or of the archive around it; elsewhere a hash of the pixels."""
        name = self.reader.name(position)
        path = Path(name)
        for file in (path, *path.parents):
            if file.is_file():
                status = file.stat()
                return f"{path.absolute()} {status.st_size} {status.st_mtime_ns} {self.mode}"
        image = self.image(position)
        return f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"

    def digest_of_example(self, position: int) -> str:
        """A hash of the encoded image; decoding is not needed."""
        return digest(self.reader.contents(position))

    def identity(self) -> dict[str, Any]:
        """See :meth:`~mtl.data.own.collection.AbstractCollection.identity`; and the mode."""
        return super().identity() | {"mode": self.mode}

    def accepts(self, inputs: Inputs) -> bool:
        """Whether these are floats ``(n, channels, height, width)``, or what a frozen part made of such, by name."""
        if inputs.named:
            return all(t.is_floating_point() for t in inputs)
        return inputs.tensor.is_floating_point() and inputs.tensor.dim() == 4

    def image(self, index: int) -> Image.Image:
        """Decode the image at a position, see :func:`mtl.items.as_image`: upright, 8 bits, in :attr:`mode`.

        Raises:
            ValueError: naming an image that cannot be decoded.
        """
        try:
            with self.reader.open(index) as image:
                return as_image(image, self.mode)
        except Exception as error:  # see as_image
            raise ValueError(
                f"{self.reader.name(index)} cannot be decoded ({reason(error)}); remove it, "
                'or open the images with verify="decode", which finds such images up front'
            ) from error
