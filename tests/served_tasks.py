"""Adapted tasks of several kinds of small networks, for the tests of serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
import transformers
from PIL import Image

import mtl
from mtl.fewshot.adapted_task import Part, Standard
from mtl.fewshot.calibration import Calibration

WORDS = [f"{a}{b}" for a in "bcdfghklmn" for b in "aeiou"]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions, norms": ("test_resnet", {}),
    "transformer, norms": ("vit_tiny_patch16_224", {}),
    "transformer, last block": ("vit_tiny_patch16_224", {"last_k": 1, "levels": "all"}),
    "images, readout": ("test_resnet", {"sites": "none", "levels": "all"}),
    "texts, norms": ("bert", {}),
    "texts, readout": ("bert", {"sites": "none", "levels": "all"}),
}


def network(kind: str, folder: Path) -> mtl.Backbone:
    name, options = NETWORKS[kind]
    if name == "bert":
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:45]]))
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return networks.build(name, folder, **options)


def task_on(backbone: mtl.Backbone, seed: int, ways: int = 3, parts: int = 1, unit: bool = False, even: bool = False):
    """A task of random numbers; odd ones are calibrated. Those of a network share what levels are evened with."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    inside, width = backbone.modulation_width, backbone.width

    def part() -> Part:
        found = Part(normal(ways, width), normal(ways), unit=unit)
        if unit:
            found = replace(found, feature_scale=1 + 0.2 * normal(width), feature_shift=0.2 * normal(width))
        return replace(found, scale=1 + 0.2 * normal(inside), shift=0.2 * normal(inside)) if inside else found

    standard = None
    if even:
        standard = Standard(torch.zeros(width), torch.ones(width), tuple(level.width for level in backbone.levels))
    names = tuple(f"task {seed}, class {i}" for i in range(ways))
    calibration = Calibration(1.5, tuple(torch.linspace(0.3, 0.97, 19).tolist())) if seed % 2 else None
    found = tuple(part() for _ in range(parts))
    return mtl.AdaptedTask(backbone, found, ways, names, standard, calibration=calibration)


def tasks_on(backbone: mtl.Backbone) -> dict[str, mtl.AdaptedTask]:
    """Of every form that there is."""
    return {
        "plain": task_on(backbone, 0),
        "more classes": task_on(backbone, 1, ways=5),
        "unit": task_on(backbone, 2, unit=True),
        "mixture": task_on(backbone, 3, parts=3, unit=True),
        "even": task_on(backbone, 4, even=True),
        "all": task_on(backbone, 5, ways=2, parts=2, unit=True, even=True),
    }


def items_for(backbone: mtl.Backbone, count: int, seed: int = 0) -> list[Any]:
    """Different images, or texts of different lengths."""
    random = np.random.default_rng(seed)
    if backbone.adapter.reads == "texts":
        return [" ".join(random.choice(WORDS[:45], 1 + i % 11)) for i in range(count)]
    mode = "L" if backbone.example_inputs(1).shape[1] == 1 else "RGB"
    pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(one).convert(mode) for one in pixels]


def alone(tasks: dict[str, mtl.AdaptedTask], items: list[Any], names: list[str]) -> list[torch.Tensor]:
    """The logits of each item where its task is asked about it alone."""
    asked = zip(items, names, strict=True)
    return [tasks[name].logits(tasks[name].backbone.preprocess([item]))[0] for item, name in asked]


def furthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest logit of its item."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
