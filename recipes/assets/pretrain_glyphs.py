"""Pretrain the backbone of the embedded glyph benchmark: one feature vector, one linear classifier per attribute.

    python recipes/assets/pretrain_glyphs.py --out mtl/data/assets

Seven minutes on one CPU thread. Expect: character .92, slant, weight, width .96, orientation .82, defect .98 on fresh
images. The clean Latin pages seen here have none of the document conditions of the episodes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountList, Positive, PositiveOrZero, Seed
from mtl.data.embedded.glyph_drawing import MEAN, STD, labelled_images, load_bank
from mtl.data.embedded.scans import ANGLES, DEFECTS, SLANTS, STYLES, WEIGHTS, WIDTHS
from mtl.tools.files import atomic_write, write_whole


@dataclass(frozen=True)
class Config(Checked):
    out: Path = Path("runs/pretrain_glyphs")  # folder for glyphs_backbone.safetensors and .json
    model: str = "resnet10t"  # any timm name; the widths below are ResNet arguments
    channels: CountList = (24, 48, 96, 160)  # widths of the four stages; the last is the feature width
    stem_width: Count = 12  # width of the stem
    act_layer: str = "silu"  # activation; a smooth one suits finite differences
    steps: Count = 4000  # optimiser steps
    batch: Count = 96  # images per step, always new ones
    lr: Positive = 3e-3  # peak learning rate of the one-cycle schedule
    weight_decay: PositiveOrZero = 0.02  # weight decay of AdamW
    test_images: Count = 4000  # fresh images for the final accuracies
    seed: Seed = 0  # seed of weights and images
    threads: Count = 1  # CPU threads


def targets(attributes: Any) -> dict[str, np.ndarray]:
    """One label per head from what the images show."""
    styles = np.array([(s.slant, s.weight, s.width) for s in STYLES["pretrain"]])[attributes.style]
    return {
        "character": attributes.character,
        "file": attributes.file,
        "slant": styles[:, 0],
        "weight": styles[:, 1],
        "width": styles[:, 2],
        "orientation": attributes.orientation,
        "defect": attributes.defect,
    }


def class_counts() -> dict[str, int]:
    bank = load_bank("pretrain")
    return {
        "character": len(bank.script),
        "file": int(bank.files.max()),
        "slant": len(SLANTS),
        "weight": len(WEIGHTS),
        "width": len(WIDTHS),
        "orientation": len(ANGLES["pretrain"]),
        "defect": len(DEFECTS["pretrain"]),
    }


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless fresh images ``(size, 1, 32, 32)`` with a label ``(size,)`` per head."""
    rng = np.random.default_rng(seed)
    while True:
        images, attributes = labelled_images("pretrain", size, rng)
        yield images, {k: torch.from_numpy(v) for k, v in targets(attributes).items()}


def main(config: Config) -> dict[str, float]:
    """Train, save, and return the accuracy of every head on fresh images."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    kwargs = {
        "in_chans": 1,
        "num_classes": 0,
        "channels": config.channels,
        "stem_width": config.stem_width,
        "act_layer": config.act_layer,
    }
    # Channels last is a third faster on a CPU.
    backbone = timm.create_model(config.model, **kwargs).to(memory_format=torch.channels_last)
    heads = nn.ModuleDict({k: nn.Linear(config.channels[-1], n) for k, n in class_counts().items()})
    train(backbone, heads, config)
    accuracy = evaluate(backbone, heads, config)
    save(backbone, {"model": config.model, "kwargs": kwargs, "accuracy": accuracy}, config.out)
    return accuracy


def train(backbone: nn.Module, heads: nn.ModuleDict, config: Config) -> None:
    """Sum of the heads' cross entropies, AdamW, one cycle."""
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    start = time.perf_counter()
    for step, (images, labels) in zip(range(config.steps), batches(config.batch, config.seed), strict=False):
        features = backbone(images.contiguous(memory_format=torch.channels_last))
        losses = {k: F.cross_entropy(head(features), labels[k]) for k, head in heads.items()}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            shown = "  ".join(f"{k} {v:.2f}" for k, v in losses.items())
            print(f"step {step:5d}  {time.perf_counter() - start:4.0f} s  {shown}", flush=True)


@torch.no_grad()
def evaluate(backbone: nn.Module, heads: nn.ModuleDict, config: Config) -> dict[str, float]:
    """Accuracy of every head on images drawn with another seed."""
    backbone.eval()
    images, labels = next(batches(config.test_images, config.seed + 1))
    features = torch.cat([backbone(part) for part in images.split(500)])
    return {k: round((head(features).argmax(1) == labels[k]).float().mean().item(), 3) for k, head in heads.items()}


def save(backbone: nn.Module, info: dict[str, Any], out: Path) -> None:
    """Half-precision weights under plain timm names, and their description."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in backbone.state_dict().items()}
    with atomic_write(out / "glyphs_backbone.safetensors") as draft:
        save_file(weights, draft)
    info = info | {"input_size": [1, 32, 32], "mean": MEAN, "std": STD}
    write_whole(out / "glyphs_backbone.json", (json.dumps(info, indent=1) + "\n").encode())


if __name__ == "__main__":
    answer(lambda config: print(main(config)), Config)
