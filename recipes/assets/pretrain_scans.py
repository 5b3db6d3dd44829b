"""A source that knows scans: the shipped backbone, trained on to tell letters apart under document conditions.

    python recipes/assets/pretrain_scans.py

Two minutes on one CPU thread. Latin, Greek and Cyrillic letters, none of which meta_transfer.py sorts. Expect an
accuracy of .92 on fresh pages; the shipped backbone has seen clean pages only. meta_transfer.py calls this itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, Folder, Positive
from mtl.data.embedded.glyph_images import letter_images
from mtl.tools.files import atomic_write
from mtl.tools.progress import ProgressBar

SCRIPTS = (("latin",), ("greek", "cyrillic", "extended_latin"))


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/pretrain_scans"  # folder for source.safetensors
    steps: Count = 600  # optimiser steps, each on a new page of every group of scripts
    lr: Positive = 3e-3  # peak learning rate of the one-cycle schedule
    threads: Count = 1  # CPU threads


def main(config: Config) -> Path:
    """The weights, made first where they are missing: for ``load_backbone("mtl/glyphs", checkpoint=...)``."""
    file = Path(config.out) / "source.safetensors"
    if file.is_file():
        return file
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    backbone = mtl.load_backbone("mtl/glyphs")
    network = nn.Sequential(backbone.model.requires_grad_(), nn.Linear(backbone.width, int(page(0)[1].max()) + 1))
    train(network.train(), config)
    print(f"accuracy on fresh pages {accuracy(network.eval()):.3f}")
    with atomic_write(file) as draft:
        save_file({k: v.contiguous() for k, v in backbone.model.state_dict().items()}, draft)
    return file


def page(seed: int) -> tuple[Tensor, Tensor]:
    """Every letter once: images and labels."""
    images, labels, first = [], [], 0
    for scripts in SCRIPTS:
        x, y = letter_images(scripts, 1, seed)
        images.append(x)
        labels.append(y + first)
        first += len(y)
    return torch.cat(images), torch.cat(labels)


def train(network: nn.Module, config: Config) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    for step in ProgressBar(range(config.steps)):
        images, labels = page(step + 100)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    right = [network(x).argmax(1) == y for x, y in map(page, range(10))]
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    answer(main, Config)
