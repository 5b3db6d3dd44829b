"""The data of the meta-transfer recipes: a few labelled images per class, in four parts that share no image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import mtl
from mtl.cli.options import Count
from mtl.cli.training.reading import told
from mtl.data.embedded.glyph_images import letter_images

Part = Literal["train", "held_out", "validation", "test"]
SCRIPTS = ("georgian", "armenian")  # of the embedded data: 60 letters that the shipped backbone has not seen


@dataclass(frozen=True)
class PartSizes:
    """Images per class of each part."""

    train: Count = 5  # the target is trained on
    held_out: Count = 5  # outer losses are taken on
    validation: Count = 5  # settings are chosen on
    test: Count = 20  # everything is judged on, at most


@dataclass(frozen=True)
class Data:
    """Images ``(n, C, H, W)`` and labels ``(n,)`` of each part, on the device."""

    parts: dict[str, tuple[Tensor, Tensor]]
    classes: int

    def minibatch(self, parts: tuple[Part, ...], size: int, *key: int) -> tuple[Tensor, Tensor]:
        """``size`` different images, as many as there are at most; the same for the same key."""
        first, *more = (self.parts[p] for p in parts)
        # One part, as in every virtual step, is not copied.
        images, labels = (torch.cat(x) for x in zip(first, *more, strict=True)) if more else first
        seed = int(np.random.default_rng(key).integers(2**62))  # neighbouring keys share no minibatch
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:size].to(labels.device)
        return images[chosen], labels[chosen]


def load(images: mtl.data.ImageCollection | None, sizes: PartSizes, backbone: mtl.Backbone) -> Data:
    """The embedded letters, or images of your own, seen as the backbone wants them."""
    parts = embedded(sizes) if images is None else own(images, sizes, backbone)
    on_device = {k: (images.to(backbone.device), labels.to(backbone.device)) for k, (images, labels) in parts.items()}
    return Data(on_device, int(parts["train"][1].max()) + 1)


def embedded(sizes: PartSizes) -> dict[str, tuple[Tensor, Tensor]]:
    return {k: letter_images(SCRIPTS, n, seed) for seed, (k, n) in enumerate(vars(sizes).items())}


def opened(source: str, sizes: PartSizes) -> mtl.data.ImageCollection:
    """The images of a folder, table or hub id.

    Raises:
        ValueError: a class has too few images for all parts.
    """
    images = mtl.open_images(source)
    told(images.notes)
    few = sizes.train + sizes.held_out + sizes.validation
    if short := [c for c, items in images.items.items() if len(items) <= few]:
        raise ValueError(f"{short[:3]} have at most {few} images, all of which are for training; lower --sizes.train")
    return images


def own(images: mtl.data.ImageCollection, sizes: PartSizes, backbone: mtl.Backbone) -> dict[str, tuple[Tensor, Tensor]]:
    few = sizes.train + sizes.held_out + sizes.validation
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(images.items[c])[: few + sizes.test] for c in images.class_names]
    bounds = np.cumsum([0, *vars(sizes).values()])
    parts = {}
    for name, start, stop in zip(vars(sizes), bounds, bounds[1:], strict=False):
        chosen = [(int(i), label) for label, items in enumerate(shuffled) for i in items[start:stop]]
        batches = [
            backbone.preprocess([images.image(i) for i, _ in chosen[j : j + 64]]) for j in range(0, len(chosen), 64)
        ]
        parts[name] = torch.cat([torch.as_tensor(b) for b in batches]), torch.tensor([label for _, label in chosen])
    return parts
