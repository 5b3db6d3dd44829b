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
    learner = mtl.from_pretrained(config.generator).to(config.device)
    collection = mtl.open_images(config.images)
    support = {name: [collection.image(i) for i in items] for name, items in collection.items.items()}
    adapted = learner.adapt(support, steps=config.steps)
    exported = mtl.export(adapted, config.out)
    print(f"{exported.folder}: {exported.parity}\nload it there with: {exported.load}")
    for note in exported.notes:
        print(f"note: {note}")
    if config.predict is None:
        return []
    rows = [row for batch in batches(Path(config.predict), config.batch_size) for row in predictions(adapted, batch)]
    with (Path(config.out) / "predictions.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["filename", "label", "probability"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} predictions in {Path(config.out) / 'predictions.csv'}")
    return rows


def batches(folder: Path, size: int) -> Iterator[list[tuple[str, Image.Image]]]:
    """Readable images of a folder, recursively; the others are named and left out."""
    known = Image.registered_extensions()
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in known)
    if not files:
        raise ValueError(f"{folder} holds no image; expected files such as .png or .jpg")
    batch, unreadable = [], []
    for file in tqdm(files, unit="image", desc="predict"):
        try:
            batch.append((str(file.relative_to(folder)), Image.open(file).convert("RGB")))
        except OSError:
            unreadable.append(str(file))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
    if unreadable:
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:5])}")


def predictions(adapted: mtl.Adapted, batch: list[tuple[str, Image.Image]]) -> list[dict[str, str]]:
    inputs = adapted.learner.backbone.preprocess([image for _, image in batch])
    assert isinstance(inputs, torch.Tensor)
    best = adapted.logits(inputs.unsqueeze(0))[0].softmax(-1).max(-1)
    found = zip(batch, best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"filename": n, "label": adapted.class_names[i], "probability": f"{p:.4f}"} for (n, _), i, p in found]


if __name__ == "__main__":
    main(tyro.cli(Config))
