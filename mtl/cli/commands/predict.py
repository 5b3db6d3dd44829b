"""Classes and probabilities of new images or texts, by an adapted task from its file.

mtl predict --task returns.mtl new/
mtl predict --task tickets.mtl new.csv --text-column body --out answers.csv --top-k 3
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import mtl
from mtl.cli.commands.closing import closing
from mtl.cli.commands.items import ItemOptions, Items, check_columns, check_paths, readable, unlabelled
from mtl.cli.options import Checked, Count, Device, Folder, Range
from mtl.tools.files import write_csv
from mtl.tools.progress import ProgressBar

Chance = Annotated[float, Range(0, 1)]
NAMED = 5  # files that could not be read, by name


@dataclass(frozen=True)
class Config(Checked):
    new: Annotated[Folder, tyro.conf.Positional]  # images (a folder, or one file) or texts (a table, .txt files)
    task: Folder  # file of an adapted task, from mtl adapt or adapted.save
    out: Folder = "predictions.csv"  # csv to write
    top_k: Count = 1  # so many classes of each item, the likeliest first
    reject: Chance | None = None  # no label where less sure than so large a share of left-out examples, such as 0.1
    backbone: str | None = None  # the network, where it is not where the file says: a folder or a name
    checkpoint: str | None = None  # file of its weights, likewise
    batch_size: Count = 64  # images or texts per forward pass
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"  # where to run
    items: Items = field(default_factory=ItemOptions)


def main(config: Config) -> list[dict[str, Any]]:
    """Predict, write the csv; returns its rows."""
    check_paths(task=config.task)
    if not Path(config.new).exists():
        raise FileNotFoundError(f"{config.new}: no such file or folder")
    task = load(config)
    if config.top_k > task.ways:
        raise ValueError(f"--top-k {config.top_k}: expected at most {task.ways}, the classes of {config.task}")
    check_columns(task.backbone, text_column=config.items.text_column, image_column=config.items.image_column)
    rows = predictions(config, task)
    write_csv(rows, config.out)
    counts = Counter("none of these" if row["label"] is None else str(row["label"]) for row in rows)
    print(f"{len(rows)} {task.backbone.adapter.reads}: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    closing({"answers": config.out}, [])
    return rows


def load(config: Config) -> mtl.AdaptedTask:
    task = mtl.load_task(config.task, config.backbone, checkpoint=config.checkpoint)
    task.backbone.to(config.device)
    return task.to(config.device)


def predictions(config: Config, task: mtl.AdaptedTask) -> list[dict[str, Any]]:
    """One row per text or readable image: the likeliest classes, and the probability of every class."""
    items = unlabelled(config.new, task.backbone, config.items)
    read: list[Any] = []
    unreadable: list[str] = []
    asked = readable(ProgressBar(items, unit="item", desc="predict", delay=2), read, unreadable)
    found = list(task.predict_rows(asked, reject=config.reject, batch_size=config.batch_size, progress=False))
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:NAMED])}{more}")
    if not read:
        raise ValueError(
            f"{config.new}: nothing there that can be read as {task.backbone.adapter.reads}; no csv written"
        )
    names = item_names(read, Path(config.new))
    return [name | ranked(row, config.top_k) for name, row in zip(names, found, strict=True)]


def ranked(row: dict[str, Any], k: int) -> dict[str, Any]:
    """A row of :meth:`~mtl.AdaptedTask.predict_rows` with ``label 2``, ``probability 2`` and so on, up to ``k``."""
    first = {name: row[name] for name in ("label", "probability")}
    classes = {name: chance for name, chance in row.items() if name not in first}
    order = sorted(classes, key=classes.__getitem__, reverse=True)
    for i, name in enumerate(order[1:k], 2):
        first |= {f"label {i}": name.removeprefix("p(").removesuffix(")"), f"probability {i}": classes[name]}
    return first | classes


def item_names(read: Sequence[Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The first columns: number and text, or the file's name below the folder."""
    for i, item in enumerate(read):
        if isinstance(item, str):
            yield {"number": i, "text": item}
        else:
            yield {"filename": item.name if item == folder else str(item.relative_to(folder))}
