"""One image from whatever people have."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLEFORMAT, TiffImageFile

Mode = Literal["RGB", "L"]
RANGE_IN_PIXELS = ("I", "F")  # modes whose header does not say from where to where their values go

_CHANNELS = (1, 2, 3, 4)
_UNSIGNED = 1  # in a TIFF's SampleFormat
_ROUNDING = 1e-4  # by which a float may leave 0 .. 1


def as_image(item: Any, mode: Mode = "RGB") -> Image.Image:
    """Any image as Pillow's: upright, 8 bits, without transparency.

    ``item`` is one of:

    - a path, the bytes of a file, or a file that is open for reading bytes;
    - a PIL image of any mode;
    - a numpy array ``(height, width)`` or ``(height, width, channels)``;
    - a torch tensor ``(height, width)`` or ``(channels, height, width)``, as torchvision has them.

    Channels are grey, grey and alpha, RGB, or RGBA. An image is turned the way its EXIF note says, what is transparent
    shows white, and of an animation the frame that it stands at is taken, which is the first one of a file.

    16-bit pixels keep their upper eight bits. Floats go from 0 to 1. Wider integers do not say how much of their range
    is in use: up to 255 they are taken for 8 bits, up to 65,535 for 16, and beyond for the whole range of their type.

    Args:
        mode: ``"RGB"``, or ``"L"`` for grey.

    Raises:
        ValueError: in one line that names the file: it is missing, damaged or too large to be honest
            (``PIL.Image.MAX_IMAGE_PIXELS``), values have no agreed range, or axes are in another order.

    >>> as_image(np.array([[0.0, 1.0]])).getpixel((1, 0))
    (255, 255, 255)
    """
    try:
        with _opened(item) as image:
            return _converted(image, mode)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"{_name(item)} cannot be decoded ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, without the name of the file: of an error of :func:`as_image`, its cause."""
    if isinstance(error, ValueError) and isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    if isinstance(error, UnidentifiedImageError):
        return "Pillow knows no such format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def _opened(item: Any) -> Iterator[Image.Image]:
    """A PIL image that is not decoded yet; of a file that is opened here, closed in the end."""
    if isinstance(item, Image.Image):
        yield item
    elif isinstance(item, np.ndarray):
        yield _from_array(item)
    elif isinstance(item, torch.Tensor):
        yield _from_tensor(item)
    elif isinstance(item, str | os.PathLike):
        with Image.open(Path(item).expanduser()) as image:
            yield image
    elif isinstance(item, bytes | bytearray | memoryview):
        with Image.open(io.BytesIO(item)) as image:
            yield image
    elif isinstance(item, io.IOBase):
        yield Image.open(item)  # pyright: ignore[reportArgumentType]
    else:
        raise ValueError("expected a path, bytes, a PIL image, a numpy array or a torch tensor")


def _name(item: Any) -> str:
    """What messages call an item."""
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(item)
    if isinstance(item, ImageFile.ImageFile) and item.filename:
        return os.fsdecode(item.filename)
    if isinstance(item, np.ndarray):
        return f"an array {item.shape} of {item.dtype}"
    if isinstance(item, torch.Tensor):
        return f"a tensor {tuple(item.shape)} of {item.dtype}"
    if isinstance(item, bytes | bytearray | memoryview):
        return f"a file of {len(item)} bytes"
    return f"a {type(item).__name__}"


# --- pixels ----------------------------------------------------------------------------------------------------------


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    """``convert`` alone clips 16-bit pixels to white, uncovers transparent ones and leaves pictures on their side."""
    image.load()
    upright = _upright(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        upright = Image.fromarray(_upper_bits(np.asarray(upright), 16))
    elif image.mode in RANGE_IN_PIXELS:
        upright = Image.fromarray(_eight_bits(_unsigned_if(image, np.asarray(upright))))
    if upright.mode == "La":  # Pillow leads out of it by one way only
        upright = upright.convert("LA")
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return (upright.convert("RGB") if upright.mode == "LAB" else upright).convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block, in as many ways as above; the pixels were read
        return image


def _unsigned_if(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """Pillow has 32-bit pixels with a sign, also where a TIFF says that there is none."""
    signs = image.tag_v2.get(SAMPLEFORMAT, (_UNSIGNED,)) if isinstance(image, TiffImageFile) else ()
    return pixels.view(np.uint32) if image.mode == "I" and _UNSIGNED in signs else pixels


def _upper_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The upper eight of so many bits."""
    return (pixels.clip(0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Values of any type as bytes; see :func:`as_image` for their ranges."""
    kind, low, high = pixels.dtype.kind, pixels.min(), pixels.max()
    if pixels.dtype == np.uint8:
        return pixels
    if kind == "b":
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return _upper_bits(pixels, 16)
    found = f"values go from {low:g} to {high:g}" if kind in "iuf" else f"values are {pixels.dtype}"
    if kind == "f":
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # nor if one is NaN
            raise ValueError(f"{found}; floats go from 0 to 1: scale them, or store 8 or 16 bits")
        return (pixels.astype(np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    if kind not in "iu" or low < 0 or high >= 2**32:
        raise ValueError(f"{found}; integers go from 0 up: scale them to uint8 or uint16")
    if high > 65535:
        return _upper_bits(pixels.astype(np.int64), 32 if pixels.dtype == np.uint32 or high >= 2**31 else 31)
    return pixels.astype(np.uint8) if high <= 255 else _upper_bits(pixels, 16)


def _from_array(pixels: np.ndarray) -> Image.Image:
    """``(height, width)`` or ``(height, width, channels)``."""
    shape = pixels.shape
    if 0 in shape or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in _CHANNELS):
        first = len(shape) == 3 and shape[0] in _CHANNELS
        raise ValueError(
            "expected (height, width) or (height, width, channels) with 1 to 4 channels"
            + ("; channels are first here: array.transpose(1, 2, 0)" if first else "")
        )
    eight = np.ascontiguousarray(_eight_bits(pixels))
    return Image.fromarray(eight[..., 0] if shape[2:] == (1,) else eight)


def _from_tensor(pixels: torch.Tensor) -> Image.Image:
    """``(height, width)`` or ``(channels, height, width)``."""
    shape = tuple(pixels.shape)
    if 0 in shape or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in _CHANNELS):
        last = len(shape) == 3 and shape[2] in _CHANNELS
        raise ValueError(
            "expected (height, width) or (channels, height, width) with 1 to 4 channels"
            + ("; channels are last here: tensor.permute(2, 0, 1)" if last else "")
        )
    values = pixels.detach().cpu()
    values = (values.float() if values.is_floating_point() else values).numpy()
    return _from_array(np.moveaxis(values, 0, -1) if values.ndim == 3 else values)
