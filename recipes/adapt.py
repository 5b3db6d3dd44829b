"""From a few labelled images or texts per class to predictions, and to a plain checkpoint where there can be one.

    python recipes/adapt.py --backbone resnet18.a1_in1k --images labelled/ --predict new/
    python recipes/adapt.py --generator runs/few_shot_vision/channelwise/final --images labelled/ --out adapted/
    python recipes/adapt.py --generator runs/few_shot_text/dense/final --texts labelled.csv --predict new/

With --backbone any network of timm or transformers, and nothing is trained: the generator that comes with the package
(or that of --generator, if it has no weights per channel) reads all levels of the network, standardised by the
unlabelled examples too. With --generator alone, the network that it was trained on.

Unlabelled images are a folder; unlabelled texts a csv, tsv or jsonl with a column of texts, a folder of .txt files, or
a .txt file with a text per line. Seconds. Prints how closely the checkpoint, loaded again by its own library, agrees
with what adapted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.answers import answer
from PIL import Image
from tqdm.auto import tqdm

import mtl
from mtl.data import ImageCollection
from mtl.data.own.images import SUFFIXES
from mtl.data.own.texts import read_texts
from mtl.fewshot.adapted import batched

STANDARDISE_BY = 300  # unlabelled examples; more say nothing new
Named = tuple[str, Any]
"""A file name or number, and the image or text."""


@dataclass(frozen=True)
class Config:
    generator: str | None = None  # folder of a trained generator (.../final or .../best)
    images: str | None = None  # one sub-folder per class, a few images each; or csv, parquet, hub id
    out: str = "adapted"  # folder for the checkpoint; must not exist yet
    predict: str | None = None  # unlabelled images or texts
    texts: str | None = None  # csv, jsonl, parquet, hub id, or one sub-folder of .txt files per class
    text_column: str | None = None  # column of texts, where a table has no usual name for it
    label_column: str | None = None  # column of labels, where the table has no usual name for it
    backbone: str | None = None  # any network of timm or transformers, without training
    cross_validate: bool = False  # weigh the generator's answer on left-out examples; always so with --backbone
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
    if config.generator is None and config.backbone is None:
        raise ValueError("name a network with --backbone, or a trained generator with --generator")
    items = None if config.predict is None else unlabelled(config, Path(config.predict))
    adapted = adapt_to(config, labelled(config))
    if adapted.choice is not None:
        print(f"chosen: {adapted.choice}")
    write_checkpoint(adapted, out, wanted=items is None)
    if items is None:
        return []
    rows = [row for batch in batched(items, config.batch_size) for row in predictions(adapted, batch)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [*(["filename"] if config.images else ["number", "text"]), "label", "probability"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} predictions in {out / 'predictions.csv'}")
    return rows


def adapt_to(config: Config, examples: dict[str, list[Any]]) -> mtl.Adapted:
    if config.backbone is None:
        assert config.generator is not None
        learner = mtl.from_pretrained(config.generator).to(config.device)
        return learner.adapt(examples, steps=config.steps, cross_validate=config.cross_validate)
    backbone = mtl.load_backbone(config.backbone, sites="none", levels="all").to(config.device)
    more = [] if config.predict is None else some_of(config, Path(config.predict))
    generator = config.generator or "mtl/universal"
    return mtl.adapt(backbone, examples, more, generator=generator, batch_size=config.batch_size)


def write_checkpoint(adapted: mtl.Adapted, out: Path, wanted: bool) -> None:
    """A plain checkpoint, where one network and one linear layer predict the same.

    Args:
        wanted: raise an error where there is none.
    """
    try:
        exported = mtl.export(adapted, out)
    except ValueError as error:
        if wanted:
            raise ValueError(f"{error}; name examples to predict with --predict") from error
        print(f"no checkpoint: {error}")
        return
    print(f"{exported.folder}: {exported.parity}\nload it there with: {exported.load}")
    for note in exported.notes:
        print(f"note: {note}")


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
    return readable(collect(path), "predict")


def some_of(config: Config, path: Path) -> list[Any]:
    """Unlabelled images or texts to standardise features by: at most so many, from all over the folder or file."""
    if config.texts is not None:
        texts = list(read_texts(path, config.text_column))
        return texts[:: max(1, len(texts) // STANDARDISE_BY)][:STANDARDISE_BY]
    images = collect(path)
    places = range(0, len(images), max(1, len(images) // STANDARDISE_BY))[:STANDARDISE_BY]
    return [image for _, image in readable(images, "standardise", places)]


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

    def contents(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


def collect(folder: Path) -> ImageCollection:
    """As a collection, so that images are turned upright and converted just as the labelled ones are."""
    files = Files(folder, sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "."))
    if not len(files):
        raise ValueError(f"--predict {folder}: no image there; expected a folder with {', '.join(sorted(SUFFIXES))}")
    return ImageCollection(str(folder), {"": tuple(range(len(files)))}, files, "RGB")


def readable(images: ImageCollection, what_for: str, places: Sequence[int] | None = None) -> Iterator[Named]:
    """Names and images; those that cannot be read are counted, named and left out."""
    unreadable: list[str] = []
    for i in tqdm(range(len(images)) if places is None else places, unit="image", desc=what_for):
        try:
            yield images.reader.name(i), images.image(i)
        except ValueError:
            unreadable.append(images.reader.name(i))
    if unreadable and places is None:  # named once
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:5])}{more}")


def predictions(adapted: mtl.Adapted, batch: list[Named]) -> list[dict[str, str]]:
    """One row per image or text: the most likely class and the learner's probability for it."""
    inputs = adapted.model.backbone.preprocess([item for _, item in batch])
    best = adapted.logits(mtl.Inputs.of(inputs).with_task_axis())[0].softmax(-1).max(-1)
    found = zip(batch, best.indices.tolist(), best.values.tolist(), strict=True)
    return [described(*item) | {"label": adapted.class_names[i], "probability": f"{p:.4f}"} for item, i, p in found]


def described(name: str, item: Any) -> dict[str, str]:
    return {"number": name, "text": item} if isinstance(item, str) else {"filename": name}


if __name__ == "__main__":
    answer(main, Config)
