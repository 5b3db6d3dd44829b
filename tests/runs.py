"""What a training run left in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def state(folder: Path) -> dict[str, torch.Tensor]:
    """The generator of the newest checkpoint."""
    return torch.load(max((folder / "checkpoints").glob("step-*.pt")), weights_only=True)["generator"]


def distance(a: dict, b: dict) -> float:
    """Largest difference of two states."""
    return max((a[k] - b[k]).abs().max().item() for k in a)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
