"""Adapt a trained generator to a few labelled images or texts per class; get a plain checkpoint and predictions.

    python recipes/adapt.py --generator runs/few_shot_vision/SupportConditioned/final --images labelled/ --out adapted/
    python recipes/adapt.py --generator runs/few_shot_text/SupportConditioned/final --texts labelled.csv --out adapted/
    python recipes/adapt.py ... --predict unlabelled/        # also writes adapted/predictions.csv

Unlabelled images are a folder; unlabelled texts a csv, tsv or jsonl with a column of texts, a folder of .txt files, or
a .txt file with a text per line. Seconds. Prints how closely the checkpoint, loaded again by its own library, agrees
with what adapted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from tqdm.auto import tqdm

import mtl
from mtl.data import ImageCollection
from mtl.data.own.images import SUFFIXES
from mtl.data.own.texts import read_texts

Named = tuple[str, Any]
"""A file name or number, and the image or text."""


@dataclass(frozen=True)
class Config:
    generator: str  # folder of a trained generator (.../final or .../best)
    images: str | None = None  # one sub-folder per class, a few images each; or csv, parquet, hub id
    out: str = "adapted"  # folder for the checkpoint; must not exist yet
    predict: str | None = None  # unlabelled images or texts
    texts: str | None = None  # csv, jsonl, parquet, hub id, or one sub-folder of .txt files per class
    text_column: str | None = None  # column of texts, where a table has no usual name for it
    label_column: str | None = None  # column of labels, where the table has no usual name for it
    steps: int | None = None  # inner steps; as many as in training by default
    batch_size: int = 64  # images or texts per forward pass when predicting
    device: str = "cuda" if torch.cuda.is_available() else "cpu"  # where to run


def main(config: Config) -> list[dict[str, str]]:
    """Adapt, export, predict; returns the rows of predictions.csv."""
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} is already there; remove it, or choose another folder with --out")
    if (config.images is None) == (config.texts is None):
        raise ValueError("name labelled examples: either --images or --texts")
    items = None if config.predict is None else unlabelled(config, Path(config.predict))
    learner = mtl.from_pretrained(config.generator).to(config.device)
    adapted = learner.adapt(labelled(config), steps=config.steps)
    exported = mtl.export(adapted, out)
    print(f"{exported.folder}: {exported.parity}\nload it there with: {exported.load}")
    for note in exported.notes:
        print(f"note: {note}")
    if items is None:
        return []
    rows = [row for batch in batches(items, config.batch_size) for row in predictions(adapted, batch)]
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [*(["filename"] if config.images else ["number", "text"]), "label", "probability"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} predictions in {out / 'predictions.csv'}")
    return rows


def labelled(config: Config) -> dict[str, list[Any]]:
    """Images or texts by class; what cannot be read is named in a warning and left out."""
    if config.texts is not None:
        texts = mtl.open_texts(config.texts, text_column=config.text_column, label_column=config.label_column)
        return {name: texts.of_class(name) for name in texts.class_names}
    assert config.images is not None
    images = mtl.open_images(config.images, verify="decode")
    return {name: [images.image(i) for i in places] for name, places in images.items.items()}


def unlabelled(config: Config, path: Path) -> Iterator[Named]:
    """Names and images, or numbers and texts. What is there at all is checked at once, the rest as it is read."""
    if config.texts is not None:
        return ((str(i), text) for i, text in enumerate(read_texts(path, config.text_column)))
    return readable(collect(path))


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
    return ImageCollection(str(folder), {"": tuple(range(len(files)))}, files, "RGB")


def readable(images: ImageCollection) -> Iterator[Named]:
    """Names and images; those that cannot be read are counted, named and left out."""
    unreadable: list[str] = []
    for i in tqdm(range(len(images)), unit="image", desc="predict"):
        try:
            yield images.reader.name(i), images.image(i)
        except ValueError:
            unreadable.append(images.reader.name(i))
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:5])}{more}")


def batches(items: Iterator[Named], size: int) -> Iterator[list[Named]]:
    batch: list[Named] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def predictions(adapted: mtl.Adapted, batch: list[Named]) -> list[dict[str, str]]:
    """One row per image or text: the most likely class and the learner's probability for it."""
    inputs = adapted.model.backbone.preprocess([item for _, item in batch])
    best = adapted.logits(mtl.Inputs.of(inputs).with_task_axis())[0].softmax(-1).max(-1)
    found = zip(batch, best.indices.tolist(), best.values.tolist(), strict=True)
    return [described(*item) | {"label": adapted.class_names[i], "probability": f"{p:.4f}"} for item, i, p in found]


def described(name: str, item: Any) -> dict[str, str]:
    return {"number": name, "text": item} if isinstance(item, str) else {"filename": name}


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (OSError, ValueError) as error:  # what the person who typed this can act on
        raise SystemExit(str(error)) from None
