"""The data of meta_transfer.py: a few labelled images per class, more without labels, and the source's maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import mtl
from mtl.cli.options import Count, CountOrZero
from mtl.cli.training.reading import told
from mtl.data.embedded.glyph_images import letter_images
from mtl.tools.identity import digest
from mtl.tools.progress import ProgressBar
from mtl.transfer import Source, SourceMaps

Part = Literal["train", "held_out", "pool", "validation", "test"]
MATCHED: tuple[Part, ...] = ("train", "held_out", "pool")  # parts of which the source's maps are there
ORDER: tuple[Part, ...] = (*MATCHED, "validation", "test")
SCRIPTS = ("georgian", "armenian")  # of the embedded data: 60 letters that the shipped backbone has not seen
CHUNK = 64  # images that pass through the source together


@dataclass(frozen=True)
class PartSizes:
    """Images per class of each part."""

    train: Count = 5  # the target is trained on
    held_out: Count = 5  # outer losses are taken on
    pool: CountOrZero = 0  # more images to match, without labels; 0 matches the training minibatch alone
    validation: Count = 5  # settings are chosen on
    test: Count = 20  # everything is judged on, at most
    classes: Count | None = None  # so many classes of images of your own, drawn at random; all by default


@dataclass(frozen=True)
class Minibatch:
    """Images, labels ``(n,)``, and the source's maps of those images."""

    images: Tensor
    labels: Tensor
    maps: list[Tensor]


@dataclass(frozen=True)
class Data:
    """All images, and which of them belong to which part.

    Args:
        images: ``(n, C, H, W)`` as the target sees them, those with maps first.
        labels: ``(n,)``.
        rows: of each part; no part shares an image with another.
        for_source: rows to images as the source wants them.
        maps: the source's, of the first images.
    """

    images: Tensor
    labels: Tensor
    rows: dict[Part, Tensor]
    for_source: Callable[[Tensor], Tensor]
    maps: SourceMaps

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def part(self, name: Part) -> tuple[Tensor, Tensor]:
        """Images and labels of a part."""
        return self.images[self.rows[name]], self.labels[self.rows[name]]

    def minibatch(self, parts: Sequence[Part], size: int, *key: int) -> Minibatch:
        """``size`` different images, as many as there are at most; the same for the same key."""
        rows = torch.cat([self.rows[p] for p in parts])
        seed = int(np.random.default_rng(key).integers(2**62))  # neighbouring keys share no minibatch
        chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:size]]
        return Minibatch(self.images[chosen], self.labels[chosen], self.maps[chosen])


def rows_of(counts: dict[Part, int]) -> dict[Part, Tensor]:
    bounds = np.cumsum([0, *counts.values()]).tolist()
    return {p: torch.arange(a, b) for p, a, b in zip(counts, bounds, bounds[1:], strict=False)}


def matched_rows(rows: dict[Part, Tensor]) -> Tensor:
    return torch.cat([rows[p] for p in MATCHED if p in rows])


def source_maps(
    source: Source,
    for_source: Callable[[Tensor], Tensor],
    rows: Tensor,
    sides: Sequence[int] | None = None,
) -> SourceMaps:
    """The maps of some rows, each computed once."""
    device = source.backbone.device

    def batches() -> Iterator[Tensor]:
        for some in ProgressBar(rows.split(CHUNK), desc="maps of the source", show=len(rows) > 10 * CHUNK):
            yield for_source(some).to(device)

    return SourceMaps.of(source, batches(), sides, torch.float32)


def embedded(sizes: PartSizes, source: Source) -> Data:
    """The embedded letters, which source and target see alike; the maps are as the source leaves them."""
    seeds: tuple[Part, ...] = ("train", "held_out", "validation", "test", "pool")
    letters: dict[Part, tuple[Tensor, Tensor]] = {}
    for seed, part in enumerate(seeds):
        if n := vars(sizes)[part]:
            letters[part] = letter_images(SCRIPTS, n, seed)
    order: list[Part] = [p for p in ORDER if p in letters]
    images, labels = (torch.cat([letters[p][i] for p in order]) for i in (0, 1))
    rows = rows_of({p: len(letters[p][1]) for p in order})
    maps = source_maps(source, images.__getitem__, matched_rows(rows))
    device = source.backbone.device
    return Data(images.to(device), labels.to(device), rows, images.__getitem__, maps)


def opened(path: str, sizes: PartSizes) -> mtl.data.ImageCollection:
    """The images of a folder, table or hub id.

    Raises:
        ValueError: a class has too few images for all parts.
    """
    images = mtl.open_images(path)
    told(images.notes)
    if sizes.classes is not None:
        chosen = np.random.default_rng(1).permutation(images.class_names)[: sizes.classes]
        images = images.select({name: images.items[name] for name in chosen.tolist()})
    few = sum(vars(sizes)[p] for p in ORDER if p != "test")
    if short := [c for c, items in images.items.items() if len(items) <= few]:
        raise ValueError(f"{short[:3]} have at most {few} images, all of which are for training; lower --sizes.train")
    return images


@dataclass(frozen=True)
class Seen:
    """How images of your own are seen."""

    img_size: Count | None = None  # side of the target's images in pixels; by default they are the source's
    source_size: Count | None = None  # side of the source's images in pixels; its own by default
    views: Count = 1  # fixed crops of each image that is trained on: the image, and all others perhaps flipped
    sides: tuple[Count, ...] = ()  # largest side of each stage's maps of the source, to which larger ones are averaged

    @property
    def of_source(self) -> dict[str, Any]:
        """Options of :func:`mtl.load_backbone`."""
        return {} if self.source_size is None else {"img_size": self.source_size}


@dataclass(frozen=True)
class Pictures:
    """Views of images, each with a place in the collection."""

    images: mtl.data.ImageCollection
    positions: list[int]
    views: list[int]

    def __getitem__(self, row: int) -> Image.Image:
        """View 0 is the image; any other a fixed crop of half of it or more, perhaps flipped."""
        image, view = self.images.image(self.positions[row]), self.views[row]
        if not view:
            return image
        rng = np.random.default_rng([self.positions[row], view])
        share = np.sqrt(rng.uniform(0.5, 1.0))
        width, height = (max(1, round(share * side)) for side in image.size)
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        crop = image.crop((left, top, left + width, top + height))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def small(self, rows: Tensor, side: int) -> Tensor:
        """``(n, C, side, side)``, from -2 to 2."""
        small = [np.asarray(self[r].resize((side, side), Image.Resampling.BICUBIC)) for r in rows.tolist()]
        stacked = torch.from_numpy(np.stack(small)).float() / 63.75 - 2
        return stacked.movedim(-1, 1) if stacked.dim() == 4 else stacked[:, None]


def own(images: mtl.data.ImageCollection, sizes: PartSizes, source: Source, seen: Seen, folder: Path) -> Data:
    """Images of your own; the standardised maps of them wait in the folder."""
    rng, device = np.random.default_rng(0), source.backbone.device
    given: dict[Part, int] = {p: n for p in ORDER if (n := vars(sizes)[p])}
    shuffled = [rng.permutation(images.items[c])[: sum(given.values())] for c in images.class_names]
    bounds = np.cumsum([0, *given.values()])
    chosen: list[tuple[int, int, int]] = []  # position, view, label
    counts: dict[Part, int] = {}
    for part, start, stop in zip(given, bounds, bounds[1:], strict=False):
        of_part = [(int(i), label) for label, items in enumerate(shuffled) for i in items[start:stop]]
        views = range(seen.views if part in MATCHED else 1)
        chosen += [(i, view, label) for view in views for i, label in of_part]
        counts[part] = len(of_part) * len(views)
    positions, view, labels = torch.tensor(chosen).T
    pictures, rows = Pictures(images, positions.tolist(), view.tolist()), rows_of(counts)

    def for_source(some: Tensor) -> Tensor:
        return torch.as_tensor(source.backbone.preprocess([pictures[r] for r in some.tolist()]))

    used = matched_rows(rows)
    facts = [images.identity(), positions[used].tolist(), view[used].tolist(), seen.sides, source.taps.names]
    file = folder / f"maps-{digest(*facts, source.backbone.identity())[:10]}.safetensors"
    if not file.is_file():
        source_maps(source, for_source, used, seen.sides or None).standardised().save(file)
    side, chunks = seen.img_size, torch.arange(len(labels)).split(CHUNK)
    small = torch.cat([for_source(some) if side is None else pictures.small(some, side) for some in chunks])
    return Data(small.to(device), labels.to(device), rows, for_source, SourceMaps.load(file, device))
