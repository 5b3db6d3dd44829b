"""Classes and probabilities of new images or texts, by an adapted task from its file.

mtl predict --task returns.mtl new/
mtl predict --task tickets.mtl new.csv --text-column body --out answers.csv --top-k 3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from tqdm.auto import tqdm

import mtl
from mtl.cli.commands.closing import closing
from mtl.cli.commands.items import ItemOptions, Items, check_columns, check_paths, readable, unlabelled
from mtl.cli.options import Checked, Count, Device, Folder
from mtl.tools.files import write_csv

NAMED = 5  # files that could not be read, by name


@dataclass(frozen=True)
class Config(Checked):
    new: Annotated[Folder, tyro.conf.Positional]  # images (a folder, or one file) or texts (a table, .txt files)
    task: Folder  # file of an adapted task, from mtl adapt or adapted.save
    out: Folder = "predictions.csv"  # csv to write
    top_k: Count = 1  # so many classes of each item, the likeliest first
    backbone: str | None = None  # the network, where it is not where the file says: a folder or a name
    checkpoint: str | None = None  # file of its weights, likewise
    batch_size: Count = 64  # images or texts per forward pass
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"  # where to run
    items: Items = field(default_factory=ItemOptions)


def main(config: Config) -> list[dict[str, str]]:
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
    counts = {name: sum(row["label"] == name for row in rows) for name in names_of(task)}
    shown = ", ".join(f"{name} {n}" for name, n in counts.items() if n)
    print(f"{len(rows)} {task.backbone.adapter.reads}: {shown}")
    closing({"answers": config.out}, [])
    return rows


def load(config: Config) -> mtl.AdaptedTask:
    task = mtl.load_task(config.task, config.backbone, checkpoint=config.checkpoint)
    task.backbone.to(config.device)
    return task.to(config.device)


def predictions(config: Config, task: mtl.AdaptedTask) -> list[dict[str, str]]:
    """One row per text or readable image: the likeliest classes, and the probability of every class."""
    items = unlabelled(config.new, task.backbone, config.items)
    read: list[Any] = []
    unreadable: list[str] = []
    asked = readable(tqdm(items, unit="item", desc="predict", delay=2), read, unreadable)
    found = task.predict_proba(asked, batch_size=config.batch_size, progress=False)
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        print(f"left out, unreadable: {len(unreadable)} files, {', '.join(unreadable[:NAMED])}{more}")
    names = names_of(task)
    return [
        name | likeliest(row, names, config.top_k) | columns(row, names)
        for name, row in zip(item_names(read, Path(config.new)), found, strict=True)
    ]


def likeliest(probabilities: Tensor, names: Sequence[str], k: int) -> dict[str, str]:
    """``label`` and ``probability``, then ``label 2`` and ``probability 2`` and so on."""
    values, classes = probabilities.topk(k)
    found: dict[str, str] = {}
    for i, (value, c) in enumerate(zip(values.tolist(), classes.tolist(), strict=True)):
        rank = f" {i + 1}" if i else ""
        found |= {f"label{rank}": names[int(c)], f"probability{rank}": f"{value:.4f}"}
    return found


def columns(probabilities: Tensor, names: Sequence[str]) -> dict[str, str]:
    """One column for each class."""
    return {f"p({name})": f"{value:.4f}" for name, value in zip(names, probabilities.tolist(), strict=True)}


def names_of(task: mtl.AdaptedTask) -> tuple[str, ...]:
    return tuple(map(str, task.class_names or range(task.ways)))


def item_names(read: Sequence[Any], folder: Path) -> Iterator[dict[str, str]]:
    """The first columns: number and text, or the file's name below the folder."""
    for i, item in enumerate(read):
        if isinstance(item, str):
            yield {"number": str(i), "text": item}
        else:
            yield {"filename": item.name if item == folder else str(item.relative_to(folder))}
