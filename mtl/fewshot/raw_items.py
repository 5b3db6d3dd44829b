"""Images and texts as people have them, as inputs of a network: batch by batch, and by class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.data import open_images, open_texts
from mtl.data.own.collection import AbstractCollection
from mtl.episode import Examples, Inputs
from mtl.items import ItemError, Reads, as_items
from mtl.networks.backbones import Backbone
from mtl.tools.progress import ProgressBar

ITEMS_PER_PASS = 64
BAR_DELAY = 3.0  # seconds; a shorter wait needs no bar


def batches(backbone: Backbone, given: Any, size: int = ITEMS_PER_PASS, progress: bool = False) -> Iterator[Inputs]:
    """Items as inputs ``(1, n, ...)``, so many at a time; no more than those are in memory.

    Args:
        given: see :func:`mtl.items.as_items`.
        progress: show a bar when it takes longer than a moment.

    Raises:
        ItemError: naming an item by its place, or its file, that cannot be read.
        ValueError: what is given holds no items.
    """
    if size < 1:
        raise ValueError(f"batch_size={size}: expected at least 1")
    return _batches(backbone, as_items(given, backbone.adapter.reads), size, progress)


def _batches(backbone: Backbone, items: Iterable[Any], size: int, progress: bool) -> Iterator[Inputs]:
    total, done = len(items) if isinstance(items, Sized) else None, 0
    with ProgressBar(total=total, unit="item", delay=BAR_DELAY, show=progress) as bar:
        for batch in batched(items, size):
            try:
                inputs = Inputs.of(backbone.preprocess(batch)).with_task_axis()
            except ItemError as error:
                raise ItemError(done + error.place, error.why) from error
            yield inputs
            done += len(batch)
            bar.update(len(batch))


def labelled(
    backbone: Backbone, support: Any, compute: Callable[[Inputs], Inputs] = lambda inputs: inputs, least: int = 2
) -> tuple[tuple[Any, ...], Examples]:
    """Names of the classes, and the examples of one task; classes are numbered in order.

    Args:
        support: items by class name, see :func:`mtl.items.as_items`; a collection; or what :func:`mtl.open_images` or
            :func:`mtl.open_texts` open, such as a folder with one sub-folder per class.
        compute: of the inputs ``(1, n, ...)`` of some items, what is kept of them.
        least: classes that are needed; 1 for examples that join others.

    Raises:
        ValueError: fewer classes, a class without items, an item that cannot be read, or something else.
    """
    groups = items_by_class(support, backbone.adapter.reads)
    names, labels = tuple(groups), list[int]()

    def items() -> Iterator[Any]:
        for label, group in enumerate(groups.values()):
            for item in group:
                labels.append(label)
                yield item

    try:
        inputs = [compute(batch) for batch in batches(backbone, items())] if len(groups) >= least else []
    except ItemError as error:
        label = labels[error.place]
        place = error.place - labels.index(label)
        raise ValueError(f"class {names[label]!r}, item {place}: {error.why}") from error
    check_classes(names, labels if len(groups) >= least else [], least)
    return names, Examples(Inputs.cat(Inputs.pad(inputs), 1), torch.tensor([labels]))


def check_classes(names: Sequence[Any], labels: Sequence[int], least: int = 2) -> None:
    """Refuse examples of too few classes, or a class without one.

    Args:
        labels: of all examples, positions among the names.
        least: classes that are needed.

    Raises:
        ValueError: saying so.
    """
    empty = [name for label, name in enumerate(names) if label not in labels] if len(names) >= least else []
    if len(names) < least or not labels or empty:
        got = f"{len(names)} classes" + (f", {empty} without any" if empty else "")
        needed = "a support set needs at least two classes" if least > 1 else "expected at least one class"
        raise ValueError(f"{needed} with an example each; got {got}")


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def items_by_class(support: Any, reads: Reads) -> dict[Any, Iterable[Any]]:
    """Items by class name, each read when it is asked for.

    Raises:
        ValueError: something else than :func:`labelled` takes.
    """
    if isinstance(support, str | os.PathLike) and reads != "items":
        folder = os.fspath(support)
        support = open_images(folder) if reads == "images" else open_texts(folder)
    if isinstance(support, AbstractCollection):
        return {name: as_items(support.select({name: places}), reads) for name, places in support.items.items()}
    if not isinstance(support, Mapping):
        got = "None" if support is None else f"a {type(support).__name__}"
        raise ValueError(f"expected {{class name: items}}, a folder of class folders, or a collection; got {got}")
    return {name: _of_class(name, items, reads) for name, items in support.items()}


def _of_class(name: Any, items: Any, reads: Reads) -> Iterable[Any]:
    try:
        return as_items(items, reads)
    except ValueError as error:
        raise ValueError(f"class {name!r}: {error}") from error


def count_ways(labels: Tensor) -> int:
    """Number of classes, the same in every task, each with an example.

    Raises:
        ValueError: fewer than two classes, or a task without an example of one.
    """
    ways = int(labels.max()) + 1 if labels.numel() else 0
    if ways < 2:
        raise ValueError(f"a support set needs at least two classes with an example each; its labels name {ways}")
    if int(labels.min()) < 0:
        raise ValueError(f"a label of the support set is {int(labels.min())}; number classes 0, 1, ... without gaps")
    absent = (~F.one_hot(labels, ways).any(1)).nonzero().tolist()
    if absent:
        task, label = absent[0]
        way_out = "number classes 0, 1, ... without gaps, and adapt tasks with fewer classes apart"
        raise ValueError(f"task {task} has no example of class {label}, but labels go up to {ways - 1}; {way_out}")
    return ways
