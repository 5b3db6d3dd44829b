"""Labelled items of many tasks, through the network in full batches, wherever one task ends and the next begins."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mtl.data.own.collection import AbstractCollection
from mtl.episode import Examples, Inputs
from mtl.fewshot.living import Support, kept_inputs
from mtl.fewshot.raw_items import batched, check_classes, items_by_class
from mtl.items import ItemError, Reads
from mtl.networks.backbones import Backbone

Keyed = tuple[Hashable | None, Callable[[], Any]]
"""What tells an item from others, None where nothing does, and how to read it."""


@dataclass(eq=False)
class _Task:
    """A task whose items are on their way.

    Args:
        rows: inputs or features ``(1, 1, ...)`` of every item that was listed, None while it has not passed.
    """

    name: str
    classes: dict[Any, Iterable[Any]] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    rows: list[Inputs | None] = field(default_factory=list)
    listed: bool = False
    failure: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.failure) or (self.listed and all(row is not None for row in self.rows))

    def fail(self, why: str) -> None:
        """Keep the first reason, and nothing else."""
        self.failure = self.failure or why
        self.rows.clear()

    def fail_at(self, slot: int, why: str) -> None:
        """Because of one item."""
        if not self.failure:
            label = self.labels[slot]
            self.fail(f"class {list(self.classes)[label]!r}, item {slot - self.labels.index(label)}: {why}")

    def support(self) -> Support:
        """What to adapt to.

        Raises:
            ValueError: fewer than two classes, or one without an example.
        """
        names = tuple(self.classes)
        check_classes(names, self.labels)
        rows = Inputs.pad([row for row in self.rows if row is not None])
        return Support(names, Examples(Inputs.cat(rows, 1), torch.tensor([self.labels])))


@dataclass(eq=False)
class _Item:
    """An item, and who waits for it: tasks, and which of their items it is."""

    key: Hashable | None
    read: Callable[[], Any]
    users: list[tuple[_Task, int]]

    @property
    def wanted(self) -> bool:
        return any(not task.failure for task, _ in self.users)


class SupportReader:
    """Reads the items of many tasks, those that several tasks share only once.

    Items are the same where they are one object in several lists, one path, one string, or one example of a collection.
    In memory are one batch of items, what the network made of unfinished tasks, and of items that others still need.

    Args:
        backbone: where nothing inside is modulated, features are all that is kept of an item.
        tasks: labelled items by task name, see :func:`~mtl.fewshot.raw_items.labelled`.
        size: items that pass through the network at a time.
    """

    def __init__(self, backbone: Backbone, tasks: Mapping[str, Any], size: int) -> None:
        self.backbone, self.size = backbone, size
        self._tasks = [_opened(name, items, backbone.adapter.reads) for name, items in tasks.items()]
        # How often an item is still needed; listing what can be listed twice reads nothing.
        self._uses = Counter(key for task in self._tasks for key in self._keys(task) if key is not None)
        self._known: dict[Hashable, Inputs | str] = {}  # or why it cannot be read
        self._waiting: dict[Hashable, _Item] = {}

    def __iter__(self) -> Iterator[tuple[str, Support | str]]:
        """Each task by name, in order, when its items have passed: what to adapt to, or why that cannot be."""
        waiting = iter(self._tasks)
        task = next(waiting, None)
        for batch in batched(self._items(), self.size):
            self._pass(batch)
            while task is not None and task.finished:
                yield task.name, _result(task)
                task = next(waiting, None)
        while task is not None:
            yield task.name, _result(task)
            task = next(waiting, None)

    def _keys(self, task: _Task) -> Iterator[Hashable | None]:
        for items in task.classes.values():
            if isinstance(items, AbstractCollection | list | tuple):
                yield from (key for key, _ in _keyed(items, self.backbone.adapter.reads))

    def _items(self) -> Iterator[_Item]:
        """All that have to pass through the network, of one task after another."""
        for task in self._tasks:
            try:
                for label, items in enumerate(task.classes.values()):
                    for key, read in _keyed(items, self.backbone.adapter.reads):
                        task.labels.append(label)
                        task.rows.append(None)
                        yield from self._asked(_Item(key, read, [(task, len(task.labels) - 1)]))
            except (ValueError, OSError) as error:
                task.fail(str(error))
            task.listed = True

    def _asked(self, item: _Item) -> Iterator[_Item]:
        """The item, unless it has passed already, or is about to."""
        if item.key in self._known:
            self._deliver(item, self._known[item.key])
        elif item.key in self._waiting:
            self._waiting[item.key].users += item.users
        else:
            if self._uses[item.key] > 1:
                self._waiting[item.key] = item
            yield item

    def _deliver(self, item: _Item, found: Inputs | str) -> None:
        """Give all who wait for an item what became of it, or why nothing did."""
        for task, slot in item.users:
            if isinstance(found, str):
                task.fail_at(slot, found)
            elif not task.failure:
                task.rows[slot] = found
        if item.key is None:
            return
        self._waiting.pop(item.key, None)
        self._uses[item.key] -= len(item.users)
        if self._uses[item.key] > 0:
            self._known[item.key] = found if isinstance(found, str) else found.map(torch.clone)
        else:
            self._known.pop(item.key, None)

    def _wanted(self, items: list[_Item]) -> list[_Item]:
        """Those that a task still waits for. Who asks for another one later has it read then."""
        for item in items:
            if not item.wanted:
                self._waiting.pop(item.key, None)
        return [item for item in items if item.wanted]

    def _pass(self, batch: list[_Item]) -> None:
        """Through the network, but for those that cannot be read and those that nobody wants any more."""
        live, read = [], []
        for item in self._wanted(batch):
            try:
                read.append(item.read())
                live.append(item)
            except (ValueError, OSError) as error:
                self._deliver(item, str(error))
        while live:
            try:
                inputs = Inputs.of(self.backbone.preprocess(read)).with_task_axis()
            except ItemError as error:
                read.pop(error.place)
                self._deliver(live.pop(error.place), error.why)
                by_item = dict(zip(live, read, strict=True))
                live = self._wanted(live)
                read = [by_item[item] for item in live]
            except ValueError as error:  # does not say which
                if len(live) > 1:
                    for item in live:
                        self._pass([item])
                else:
                    self._deliver(live[0], str(error))
                return
            else:
                found = kept_inputs(self.backbone, inputs)
                for i, item in enumerate(live):
                    self._deliver(item, found.map(lambda v, i=i: v[:, i : i + 1]))
                return


def _opened(name: str, items: Any, reads: Reads) -> _Task:
    try:
        return _Task(name, items_by_class(items, reads))
    except (ValueError, OSError) as error:
        return _Task(name, failure=str(error))


def _result(task: _Task) -> Support | str:
    """And nothing is kept of the task."""
    try:
        found = task.failure or task.support()
    except ValueError as error:
        found = str(error)
    task.rows.clear()
    return found


def _keyed(items: Iterable[Any], reads: Reads) -> Iterator[Keyed]:
    """Items of one class. Those of a generator are gone when they are read, so nothing tells them apart."""
    if isinstance(items, AbstractCollection):
        for place in (p for places in items.items.values() for p in places):
            yield items.key(place), partial(_example, items, place)
    else:
        lasting = isinstance(items, list | tuple)
        for item in items:
            yield _key(item, reads) if lasting else None, partial(_itself, item)


def _key(item: Any, reads: Reads) -> Hashable:
    if isinstance(item, os.PathLike) or (isinstance(item, str) and reads == "images"):
        return "path", os.path.abspath(os.path.expanduser(os.fspath(item)))
    return ("text", item) if isinstance(item, str) else ("object", id(item))


def _example(collection: AbstractCollection, place: int) -> Any:
    return collection.read([place])[0]


def _itself(item: Any) -> Any:
    return item
