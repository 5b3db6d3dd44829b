"""Adapt a trained generator to a folder with a few labelled images per class; get a plain checkpoint and predictions.

    python recipes/adapt.py --generator runs/few_shot_vision/SupportConditioned/final --images labelled/ --out adapted/
    python recipes/adapt.py ... --predict unlabelled/        # also writes adapted/predictions.csv

Seconds. Prints how closely the checkpoint, loaded again by its own library, agrees with what adapted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image
from tqdm.auto import tqdm

import mtl
from mtl.data import ImageCollection
from mtl.data.images import SUFFIXES

Named = tuple[str, Image.Image]


@dataclass(frozen=True)
class Config:
    generator: str  # folder of a trained generator (.../final or .../best)
    images: str  # one sub-folder per class, a few images each; or csv, parquet, hub id
    out: str = "adapted"  # the checkpoint goes here; must not exist
    predict: str | None = None  # folder of unlabelled images
    steps: int | None = None  # inner steps; those of training by default
    batch_size: int = 64  # images per forward pass when predicting
    device: str = "cuda" if torch.cuda.is_available() else "cpu"  # where to run


def main(config: Config) -> list[dict[str, str]]:
    """Adapt, export, predict; returns the rows of predictions.csv."""
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} is already there; remove it, or choose another folder with --out")
    unlabelled = None if config.predict is None else collect(Path(config.predict))
    learner = mtl.from_pretrained(config.generator).to(config.device)
    adapted = learner.adapt(labelled(config.images), steps=config.steps)
    exported = mtl.export(adapted, out)
    print(f"{exported.folder}: {exported.parity}\nload it there with: {exported.load}")
    for note in exported.notes:
        print(f"note: {note}")
    if unlabelled is None:
        return []
    rows = [row for batch in batches(unlabelled, config.batch_size) for row in predictions(adapted, batch)]
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["filename", "label", "probability"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} predictions in {out / 'predictions.csv'}")
    return rows


def labelled(source: str) -> dict[str, list[Image.Image]]:
    """Images by class; unreadable ones are named in a warning and left out."""
    images = mtl.open_images(source, verify="decode")
    return {name: [images.image(i) for i in places] for name, places in images.items.items()}


@dataclass(frozen=True)
class Files:
    """The image files of a folder, at any depth, for an :class:`ImageCollection` without labels."""

    folder: Path
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index].relative_to(self.folder))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


def collect(folder: Path) -> ImageCollection:
    """As a collection, so that images are turned upright and converted just as the labelled ones are."""
    files = Files(folder, sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "."))
    if not len(files):
        raise ValueError(f"--predict {folder}: no image there; expected a folder with {', '.join(sorted(SUFFIXES))}")
    return ImageCollection(str(folder), {"": tuple(range(len(files)))}, files, "RGB", parts={})


def batches(images: ImageCollection, size: int) -> Iterator[list[Named]]:
    """Names and images; those that cannot be read are counted, named and left out."""
    batch: list[Named] = []
    unreadable: list[str] = []
    for i in tqdm(range(len(images)), unit="image", desc="predict"):
        try:
            batch.append((images.reader.name(i), images.image(i)))
        except ValueError:
            unreadable.append(images.reader.name(i))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:5])}{more}")


def predictions(adapted: mtl.Adapted, batch: list[Named]) -> list[dict[str, str]]:
    """One row per image: the most likely class and the learner's probability for it."""
    inputs = adapted.learner.backbone.preprocess([image for _, image in batch])
    assert isinstance(inputs, torch.Tensor)
    best = adapted.logits(inputs.unsqueeze(0))[0].softmax(-1).max(-1)
    found = zip(batch, best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"filename": n, "label": adapted.class_names[i], "probability": f"{p:.4f}"} for (n, _), i, p in found]


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (OSError, ValueError) as error:  # what the person who typed this can act on
        raise SystemExit(str(error)) from None
