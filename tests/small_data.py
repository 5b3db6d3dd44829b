"""Images, texts and an encoder small enough for a test."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

LITTLE_ENCODER = {"layers": 1, "width": 32, "vocabulary": 400, "length": 16, "steps": 2, "batch": 8}


def pictures(folder: Path, classes: int, each: int) -> Path:
    for c in range(classes):
        for i in range(each):
            file = folder / f"class {c}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), 25 * c + i).save(file)
    return folder


def text_table(file: Path, classes: int, each: int) -> Path:
    with file.open("w", newline="") as f:
        rows = [(f"text {'of a kind ' * c} {i}", f"class {c}") for c in range(classes) for i in range(each)]
        csv.writer(f).writerows([("note", "kind"), *rows])
    return file
