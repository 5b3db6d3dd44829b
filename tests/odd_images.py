"""Odd and damaged pictures: see stress_files.py."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from odd_cases import REFUSED, Case, Either, damages, flipped
from PIL import Image

import mtl
from mtl.items import as_image

SIZE = (16, 12)
GREY, WHITE = (90, 90, 90), (255, 255, 255)


def by_item(path: Path) -> tuple[tuple[int, int], Any]:
    """Size and first pixel."""
    image = as_image(path)
    return image.size, Near(image.getpixel((0, 0)))


def by_collection(path: Path) -> tuple[tuple[int, int], Any]:
    """The same picture among others, in a folder of its class."""
    home = path.parent / "classes"
    for label in ("a", "b"):
        (home / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", SIZE, (i, ord(label), 0)).save(home / label / f"{i}.png")
    path.rename(home / "a" / path.name)
    found = mtl.open_images(home, verify="decode")
    if found.skipped:
        [reason] = found.skipped
        raise ValueError(reason)
    [image] = [found.image(i) for i in found.items["a"] if found.reader.name(i).endswith(path.name)]
    return image.size, Near(image.getpixel((0, 0)))


class Near(tuple[int, ...]):
    """A pixel; lossy formats miss by a little."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and all(abs(a - b) < 9 for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + body + chunk(b"IEND", b"")


def solid(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, SIZE, value)


def halves(size: tuple[int, int] = SIZE) -> Image.Image:
    """Dark at the left, light at the right, so that turning shows."""
    image = Image.new("L", size, 250)
    image.paste(10, (0, 0, size[0] // 2, size[1]))
    return image.convert("RGB")


def grey16(form: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(np.full(SIZE[::-1], 90 << 8, np.uint16)), form, **options)


def modes() -> Iterator[tuple[str, bytes, Any]]:
    """Names, contents, and what is right."""
    clear = solid("RGBA", (9, 9, 9, 0))
    palette = solid("RGB", GREY).quantize(4)
    yield "bits.png", encoded(solid("1", 1), "PNG"), WHITE
    yield "grey.png", encoded(solid("L", 90), "PNG"), GREY
    yield "grey alpha.png", encoded(solid("LA", (9, 0)), "PNG"), WHITE
    yield "palette.png", encoded(palette, "PNG"), GREY
    yield "palette, transparent.png", encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), WHITE
    yield "colour.png", encoded(solid("RGB", GREY), "PNG"), GREY
    yield "transparent.png", encoded(clear, "PNG"), WHITE
    yield "colour as transparent.png", encoded(solid("RGB", GREY), "PNG", transparency=GREY), WHITE
    yield "16 bits.png", grey16("PNG"), GREY
    yield "16 bits.tif", grey16("TIFF"), GREY
    yield "16 bits.pgm", b"P5 16 12 65535\n" + struct.pack(">H", 90 << 8) * 192, GREY
    yield "16 bits of colour.png", png(16, 12, 16, 2, (b"\0" + struct.pack(">H", 90 << 8) * 48) * 12), GREY
    yield "2 bits.png", png(16, 12, 2, 0, (b"\0" + b"\xff" * 4) * 12), WHITE
    yield "32 bits.tif", encoded(Image.fromarray(np.full(SIZE[::-1], 90, np.int32)), "TIFF"), GREY
    yield "floats.tif", encoded(Image.fromarray(np.full(SIZE[::-1], 90 / 255, np.float32)), "TIFF"), GREY
    yield "large floats.tif", encoded(Image.fromarray(np.full(SIZE[::-1], 900, np.float32)), "TIFF"), REFUSED
    yield "nan.tif", encoded(Image.fromarray(np.full(SIZE[::-1], np.nan, np.float32)), "TIFF"), REFUSED
    yield "lab.tif", encoded(solid("LAB", (255, 128, 128)), "TIFF"), WHITE
    yield "cmyk.jpg", encoded(solid("CMYK", (0, 0, 0, 0)), "JPEG"), WHITE
    yield "cmyk.tif", encoded(solid("CMYK", (0, 0, 0, 0)), "TIFF"), WHITE
    yield "progressive.jpg", encoded(solid("RGB", GREY), "JPEG", progressive=True), GREY
    yield "grey.jpg", encoded(solid("L", 90), "JPEG"), GREY
    yield "lzw.tif", encoded(solid("RGB", GREY), "TIFF", compression="tiff_lzw"), GREY
    yield "pages.tif", encoded(solid("RGB", GREY), "TIFF", save_all=True, append_images=[solid("RGB", WHITE)]), GREY
    yield "bits.bmp", encoded(solid("1", 1), "BMP"), WHITE
    yield "colour.bmp", encoded(solid("RGB", GREY), "BMP"), GREY
    yield "colour.ppm", encoded(solid("RGB", GREY), "PPM"), GREY
    yield "moving.gif", encoded(solid("RGB", GREY), "GIF", save_all=True, append_images=[solid("RGB", WHITE)]), GREY
    yield "transparent.gif", encoded(clear.copy(), "GIF"), WHITE
    yield "moving.png", encoded(solid("RGB", GREY), "PNG", save_all=True, append_images=[solid("RGB", WHITE)]), GREY
    yield "colour.webp", encoded(solid("RGB", GREY), "WEBP", lossless=True), GREY
    yield "transparent.webp", encoded(clear.copy(), "WEBP", lossless=True), WHITE
    yield "moving.webp", encoded(solid("RGB", GREY), "WEBP", save_all=True, append_images=[solid("RGB", WHITE)]), GREY
    yield "a jpg.png", encoded(solid("RGB", GREY), "JPEG"), GREY
    yield "a png.jpg", encoded(solid("RGB", GREY), "PNG"), GREY
    yield "a webp.gif", encoded(solid("RGB", GREY), "WEBP"), GREY
    yield "UPPER CASE.PNG", encoded(solid("RGB", GREY), "PNG"), GREY
    yield "a name, with “signs” & 多.png", encoded(solid("RGB", GREY), "PNG"), GREY


def turned() -> Iterator[tuple[str, bytes, Any]]:
    """Dark is left as it should be seen; the file has it where the camera had it."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
        seen = halves()
        stored = seen if back is None else seen.transpose(Image.Transpose(back))
        for form, suffix in (("JPEG", "jpg"), ("PNG", "png")):
            options = {"quality": 95} if form == "JPEG" else {}
            yield f"turned {orientation}.{suffix}", encoded(stored, form, exif=exif, **options), (10, 10, 10)
    odd = Image.Exif()
    odd[0x0112] = 99
    yield "turned 99.jpg", encoded(halves(), "JPEG", exif=odd, quality=95), (10, 10, 10)
    yield "damaged exif.jpg", encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95), (10, 10, 10)


def broken() -> Iterator[tuple[str, bytes, Any]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for form, suffix in (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ):
        content = encoded(noise, form)
        for name, damage in damages(content):
            if name != "all but one byte":  # some formats end in padding
                yield f"{name}.{suffix}", damage, REFUSED
    content = encoded(solid("RGB", GREY), "PNG")
    for name, damage in flipped(content, 12):
        yield f"{name}.png", damage, Either((SIZE, GREY))
    yield "30000 by 30000.png", png(30_000, 30_000, 8, 0, b""), REFUSED
    yield "0 by 0.png", png(0, 0, 8, 0, b""), REFUSED
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    yield "a bomb in a comment.png", png(16, 12, 8, 0, (b"\0" + b"\x5a" * 16) * 12, bomb), Either((SIZE, GREY))
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', REFUSED
    yield "a phone's.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), REFUSED
    yield "layers.png", b"8BPS\0\1" + bytes(100), REFUSED
    yield "text.jpg", b"this is no picture", REFUSED


def cases() -> list[Case]:
    made = []
    for kind, files in (("images, odd", modes()), ("images, turned", turned()), ("images, damaged", broken())):
        for name, content, right in files:
            known = right is REFUSED or isinstance(right, Either)
            value = right if known else (SIZE, Near(right))
            for way, read in (("", by_item), (" among others", by_collection)):
                made.append(Case(kind + way, name, lambda f, n=name, c=content: _put(f, n, c), read, value))
    return made


def _put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name
