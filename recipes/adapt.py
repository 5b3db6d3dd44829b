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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm.auto import tqdm

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountOrZero, Device, Folder
from mtl.cli.training.reading import Reading, told
from mtl.data import read_texts
from mtl.items import as_image, image_files
from mtl.tools.files import write_csv

STANDARDISE_BY = 300  # unlabelled examples; more say nothing new

Read = Annotated[Reading, tyro.conf.OmitArgPrefixes]  # --encoding, --class-level


@dataclass(frozen=True)
class Config(Checked):
    generator: str | None = None  # folder of a trained generator (.../final or .../best)
    images: str | None = None  # one sub-folder per class, a few images each; or csv, parquet, hub id
    out: Folder = "adapted"  # folder for the checkpoint; must not exist yet
    predict: str | None = None  # unlabelled images (a folder, or one file) or texts
    texts: str | None = None  # csv, jsonl, parquet, hub id, or one sub-folder of .txt files per class
    text_column: str | None = None  # column of texts, where a table has no usual name for it
    label_column: str | None = None  # column of labels, where the table has no usual name for it
    image_column: str | None = None  # column of images or their file names, where a table has no usual name for it
    image_folder: str | None = None  # what the file names of a table are relative to; its own folder when not given
    reading: Read = field(default_factory=Reading)  # of files that are not UTF-8, and of folders in folders
    backbone: str | None = None  # any network of timm or transformers, without training
    cross_validate: bool = False  # weigh the generator's answer on left-out examples; always so with --backbone
    steps: CountOrZero | None = None  # inner steps; as many as in training by default
    batch_size: Count = 64  # images or texts per forward pass when predicting
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"  # where to run

    def contradictions(self) -> Iterator[str]:
        if (self.images is None) == (self.texts is None):
            yield "name labelled examples: either --images or --texts"
        if self.generator is None and self.backbone is None:
            yield "name a network with --backbone, or a trained generator with --generator"


def main(config: Config) -> list[dict[str, str]]:
    """Adapt, export, predict; returns the rows of predictions.csv."""
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} is already there; remove it, or choose another folder with --out")
    items = unlabelled(config)
    examples = labelled(config)
    told(examples.notes)
    adapted = adapt_to(config, examples, items)
    if adapted.choice is not None:
        print(f"chosen: {adapted.choice}")
    write_checkpoint(adapted, out, wanted=not items)
    if not items:
        return []
    rows = predictions(adapted, items, config)
    write_csv(rows, out / "predictions.csv")
    print(f"{len(rows)} predictions in {out / 'predictions.csv'}")
    return rows


def adapt_to(config: Config, examples: mtl.data.AbstractCollection, items: list[Any]) -> mtl.Adapted:
    if config.backbone is None:
        assert config.generator is not None
        learner = mtl.from_pretrained(config.generator).to(config.device)
        return learner.adapt(examples, steps=config.steps, cross_validate=config.cross_validate)
    backbone = mtl.load_backbone(config.backbone, sites="none", levels="all").to(config.device)
    some = items[:: max(1, len(items) // STANDARDISE_BY)][:STANDARDISE_BY]  # from all over the folder or file
    generator = config.generator or "mtl/universal"
    return mtl.adapt(backbone, examples, readable(some, [], []), generator=generator, batch_size=config.batch_size)


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
    print(f"{exported.folder}: {exported.parity}\npredict there, without mtl, with:\n{exported.predict}")
    for note in exported.notes:
        print(f"note: {note}")


def labelled(config: Config) -> mtl.data.AbstractCollection:
    """Images or texts by class; what cannot be read is named in a warning and left out."""
    if config.texts is not None:
        columns = {"text_column": config.text_column, "label_column": config.label_column}
        return mtl.open_texts(config.texts, **columns, **vars(config.reading))
    assert config.images is not None
    return mtl.open_images(
        config.images,
        image_column=config.image_column,
        label_column=config.label_column,
        image_folder=config.image_folder,
        verify="decode",
        **vars(config.reading),
    )


def unlabelled(config: Config) -> list[Any]:
    """Texts, or the paths of images. What is there at all is checked at once, the rest as it is read."""
    if config.predict is None:
        return []
    path = Path(config.predict)
    if not path.exists():
        raise ValueError(f"--predict {path}: no such file or folder")
    if config.texts is not None:
        return list(read_texts(path, config.text_column, config.reading.encoding))
    return image_files(path) if path.is_dir() else [path]


def readable(items: Iterable[Any], read: list[Any], unreadable: list[str]) -> Iterator[Any]:
    """Texts, and images that can be decoded; what was read is noted in one list, the names of the rest in the other."""
    for item in items:
        try:
            found = item if isinstance(item, str) else as_image(item)
        except ValueError:
            unreadable.append(str(item))
        else:
            read.append(item)
            yield found


def predictions(adapted: mtl.Adapted, items: list[Any], config: Config) -> list[dict[str, str]]:
    """One row per text or readable image: the most likely class and the learner's probability for it."""
    read: list[Any] = []
    unreadable: list[str] = []
    asked = readable(tqdm(items, unit="item", desc="predict"), read, unreadable)
    answers = adapted.predict_each(asked, batch_size=config.batch_size)
    folder = Path(config.predict or "")
    rows = []
    for i, (found, item) in enumerate(zip(answers, read, strict=True)):
        name = {"number": str(i), "text": item} if isinstance(item, str) else {"filename": name_in(folder, item)}
        rows.append(name | {"label": str(found.label), "probability": f"{found.probability:.4f}"})
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:5])}{more}")
    return rows


def name_in(folder: Path, path: Path) -> str:
    """The name below the folder, or of the only file."""
    return path.name if path == folder else str(path.relative_to(folder))


if __name__ == "__main__":
    answer(main, Config)
