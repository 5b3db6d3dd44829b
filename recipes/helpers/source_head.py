"""The source as it is, with a linear head: what a target has to be compared with."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.transfer_data import Part
from helpers.transfer_runs import Run, Workplace


def source_head(place: Workplace, seed: int) -> dict[str, Any]:
    """The source as it is, with a linear classifier on its standardised features; weight decay chosen on validation."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    parts: tuple[Part, ...] = ("train", "validation", "test")
    labels = {p: place.data.part(p)[1] for p in parts}
    with torch.no_grad():
        seen = {p: features(place, p) for p in parts}
    mean, std = seen["train"].mean(0), seen["train"].std(0) + 1e-3
    seen = {k: (v - mean) / std for k, v in seen.items()}
    fits = [fitted(seen["train"], labels["train"], place.data.classes, decay) for decay in (1e-3, 1e-2, 1e-1, 1.0)]
    right = lambda head, part: head(seen[part]).argmax(1) == labels[part]  # noqa: E731
    head = max(fits, key=lambda h: float(right(h, "validation").float().mean()))
    row = vars(Run("source, new head", 0, seed)) | {"seconds": time.perf_counter() - start}
    row |= {"validation": float(right(head, "validation").float().mean())}
    test = right(head, "test")
    return row | {"accuracy": float(test.float().mean()), "right": "".join(map(str, test.int().tolist()))}


def features(place: Workplace, part: Part) -> Tensor:
    """The source's features of a part, ``(n, width)``."""
    backbone = place.source.backbone
    batches = place.data.rows[part].split(256)
    return torch.cat([backbone.features(place.data.for_source(rows).to(backbone.device)).float() for rows in batches])


def fitted(features: Tensor, labels: Tensor, classes: int, decay: float) -> nn.Linear:
    head = nn.Linear(features.shape[1], classes).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=decay)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return head
