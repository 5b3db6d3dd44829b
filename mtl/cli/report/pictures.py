"""Pictures inside a page, small enough."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mtl.cli.report.elements import Html, image

PLOT, PHOTOS = 120_000, 600_000  # most bytes of a figure, and of pictures of data


def figure(draw: Callable[[Path], Any], words: str) -> Html:
    """A figure that a function writes to the path that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        return image(address(path.read_bytes(), PLOT, colours=64), words)


def picture(path: Path, words: str) -> Html:
    """A picture that lies in a file."""
    return image(address(path.read_bytes(), PHOTOS), words)


def address(contents: bytes, most: int, colours: int = 0) -> str:
    """A picture as a data URI, with fewer colours or pixels where it takes more than ``most`` bytes."""
    if colours:
        small = io.BytesIO()
        Image.open(io.BytesIO(contents)).convert("RGB").quantize(colours).save(small, "png", optimize=True)
        contents = min(contents, small.getvalue(), key=len)
    kind = "png"
    if len(contents) > most:
        whole, scale, kind = Image.open(io.BytesIO(contents)).convert("RGB"), 1.0, "jpeg"
        while len(contents) > most:
            size = [max(1, round(scale * side)) for side in whole.size]
            small = io.BytesIO()
            whole.resize((size[0], size[1])).save(small, kind, quality=85)
            contents, scale = small.getvalue(), 0.8 * scale
    return f"data:image/{kind};base64,{base64.b64encode(contents).decode()}"
