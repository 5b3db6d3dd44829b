"""Families of tasks over readouts of frozen networks, each example through each network once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

import mtl
from mtl.cli.options import Count, Folder, TwoOrMore
from mtl.data import DividedFamilies, FamilyRequest, FamilyTasks, InputCache
from mtl.data.own.collection import AbstractCollection
from mtl.fewshot import FeatureStatistics
from mtl.tools.progress import ProgressBar
from mtl.tools.reliability import Answers

BATCH = 64  # examples in one forward pass


@dataclass(frozen=True)
class Data:
    """What there is to train on; docs/several-kinds.md explains data sets, label columns, and how they are divided."""

    images: tuple[str, ...] = ()  # data sets of images: class folders, zip archives, tables
    texts: tuple[str, ...] = ()  # data sets of texts: csv, jsonl or jsonl.gz
    label_columns: tuple[str, ...] = ()  # columns of labels, of all data sets or of one such as fashion:baseColour
    group_column: tuple[str, ...] = ()  # column, or pattern in file names; support and query never share a group
    validation_families: tuple[str, ...] = ()  # unseen families that choose the best weights
    hold_out_families: tuple[str, ...] = ()  # unseen families for the test
    ways: TwoOrMore = 5  # classes per task
    examples_per_class: Count = 20  # at most, of each class in each part
    classes_per_family: Count = 40  # at most, in each part
    min_per_class: Count = 8  # leave out smaller classes
    cache_dir: Folder = "runs/readouts"  # where readouts are kept; may be deleted

    def unsaid(self, purpose: str) -> Iterator[str]:
        """What is wrong with the options where one kind of data is needed, to ``purpose``."""
        if bool(self.images) == bool(self.texts):
            yield f"name what to {purpose}: expected either --images or --texts"

    def one_kind(self) -> DividedFamilies:
        """Families of the images or of the texts, whichever were named."""
        divided = self.of_kind("images" if self.images else "texts")
        assert divided is not None, "checked with the options"
        return divided

    def of_kind(self, kind: Literal["images", "texts"]) -> DividedFamilies | None:
        """Families of the images or the texts, at most so many examples per class; None where there are none."""
        sources = self.images if kind == "images" else self.texts
        if not sources:
            return None
        names = {_name(source) for source in sources}
        columns = [c for c in self.label_columns if ":" not in c or c.split(":")[0] in names]
        groups = [g for g in self.group_column if ":" not in g or g.split(":")[0] in names]
        families = mtl.data.open_families(sources, columns, kind=kind, groups=groups)
        known = [f.name for f in families]
        request = FamilyRequest(
            hold_out=_fitting(self.hold_out_families, known),
            validation=_fitting(self.validation_families, known),
            ways=self.ways,
            min_per_class=self.min_per_class,
        )
        divided = mtl.data.divide_families(families, request=request)
        return capped(divided, self.classes_per_family, self.examples_per_class)


def _name(source: str) -> str:
    path = Path(source)
    return path.name if path.is_dir() else path.name.split(".")[0]


def _fitting(patterns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the patterns that mean one of these families."""
    return tuple(p for p in patterns if any(fnmatchcase(name, p) for name in names))


def capped(divided: DividedFamilies, classes: int, examples: int) -> DividedFamilies:
    """The same families with at most so many classes in each part, and examples in each class.

    A hash of names and positions chooses: columns of one data set then have many of their examples in common.
    """

    def some(collection: AbstractCollection) -> AbstractCollection:
        kept = sorted(collection.items, key=_rank)[:classes]
        return collection.select({c: tuple(sorted(collection.items[c], key=_rank)[:examples]) for c in kept})

    parts = {part: {name: some(c) for name, c in found.items()} for part, found in divided.parts.items()}
    return replace(divided, parts=parts)


def _rank(value: object) -> bytes:
    return hashlib.sha256(str(value).encode()).digest()


@dataclass(frozen=True)
class Network:
    """A frozen network, families of its kind of data, and statistics of its features.

    Args:
        parts: that passed through the network.
        statistics: of examples of the first of these parts that has any, without their labels.
    """

    backbone: mtl.Backbone
    divided: DividedFamilies
    rows: InputCache
    parts: tuple[str, ...]
    statistics: FeatureStatistics

    @staticmethod
    def of(backbone: mtl.Backbone, divided: DividedFamilies, rows: InputCache, parts: Sequence[str]) -> Network:
        first = next((part for part in parts if divided.parts[part]), None)
        if first is None:
            ways = divided.split.request.ways
            raise ValueError(
                f"no question has {ways} classes in any of {', '.join(parts)}; {'; '.join(divided.report)}. Expected "
                "one or more: ask for fewer --ways or a smaller --min-per-class"
            )
        statistics = FeatureStatistics.of(backbone, _batches(rows, divided, first, f"{backbone.name}, statistics"))
        return Network(backbone, divided, rows, tuple(parts), statistics)

    def tasks(self, part: str, shots: int, queries: int, seed: int = 0) -> FamilyTasks:
        """Tasks whose inputs are finished readouts."""
        sizes: dict[str, Any] = {"ways": self.divided.split.request.ways, "shots": shots, "queries": queries}
        return FamilyTasks(self.divided, part, preprocess=self.rows, seed=seed, **sizes)

    def by_data_set(self) -> dict[str, Network]:
        """The same network for each data set alone, with statistics of its own."""
        names = [name.split(".")[0] for part in self.parts for name in self.divided.parts[part]]
        return {
            name: Network.of(self.backbone, self._only(name), self.rows, self.parts) for name in dict.fromkeys(names)
        }

    def _only(self, data_set: str) -> DividedFamilies:
        kept = lambda found: {name: c for name, c in found.items() if name.split(".")[0] == data_set}  # noqa: E731
        return replace(self.divided, parts={part: kept(found) for part, found in self.divided.parts.items()})


def open_network(
    name: str, data: Data, divided: DividedFamilies, parts: Sequence[str] = ("train", "val", "test"), **options: Any
) -> Network:
    """Load a network and read all examples of some parts through it, unless an earlier run has.

    Args:
        divided: families of the kind that the network reads.
        options: of :func:`mtl.load_backbone`.
    """
    backbone = mtl.load_backbone(name, sites="none", levels="all", **options)
    rows = InputCache(backbone.precompute, folder=data.cache_dir, version=backbone.cache_key())
    for part in parts:
        for _ in _batches(rows, divided, part, f"{name}, {part}"):
            pass
    rows.flush()
    return Network.of(backbone, divided, rows, parts)


def _batches(rows: InputCache, divided: DividedFamilies, part: str, shown: str) -> Iterator[Any]:
    """Readouts of every example of a part once, in batches of like length."""
    found: dict[Any, tuple[AbstractCollection, int]] = {}
    for collection in divided.parts[part].values():
        found |= {collection.key(p): (collection, p) for places in collection.items.values() for p in places}
    by_source: dict[str, list[tuple[AbstractCollection, int]]] = {}
    for collection, position in found.values():
        by_source.setdefault(collection.source, []).append((collection, position))
    with ProgressBar(total=len(found), desc=shown, unit="example") as bar:
        for members in by_source.values():
            collection = members[0][0]
            places = sorted((p for _, p in members), key=lambda p: len(str(collection.identity_of_example(p))))
            for start in range(0, len(places), BATCH):
                chunk = places[start : start + BATCH]
                yield rows(collection, chunk)
                bar.update(len(chunk))


def joined(parts: Sequence[mtl.Comparison]) -> mtl.Comparison:
    """The same methods on the episodes of all parts."""
    counts = [len(part.families) for part in parts]
    rows = [
        replace(
            rows[0],
            accuracy=np.concatenate([row.accuracy for row in rows]),
            answers=Answers.joined([row.answers for row in rows]),
            seconds_per_task=float(np.average([row.seconds_per_task for row in rows], weights=counts)),
        )
        for rows in zip(*(part.rows for part in parts), strict=True)
    ]
    families = tuple(family for part in parts for family in part.families)
    unseen = tuple(dict.fromkeys(name for part in parts for name in part.unseen))
    return replace(parts[0], families=families, rows=tuple(rows), unseen=unseen)
