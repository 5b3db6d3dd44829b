"""Gradients through some support examples only, for support sets that are too large (LITE, arXiv 2107.01105).

The loss sees every example, at the price of a plain forward pass. The gradient goes back through ``count`` of ``n``,
each of which counts ``n / count`` times: on average over the draws it is the full one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from mtl.episode import Examples
from mtl.networks.backbones import Prepared


def lite_carriers(support: Examples, count: int | None) -> Callable[[int], Tensor | None]:
    """A function from the step to the sorted indices of the support examples that carry its gradients; None: all do.

    A function of the examples and the step alone: whoever evaluates a step again, in another process or run, draws the
    same ones.
    """
    n = support.labels.shape[1]
    if count is None or count >= n:
        return lambda step: None
    first = next(iter(support.inputs))
    seed = zlib.crc32(first.flatten()[:4096].cpu().float().numpy().tobytes())

    def draw(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + step)
        return torch.randperm(n, generator=generator)[:count].sort().values

    return draw


def carried(seen: Prepared, carriers: Tensor, features: Callable[[Prepared], Tensor]) -> Tensor:
    """Features ``(tasks, n, D)`` of all examples, whose gradient goes back through the carriers alone.

    Args:
        carriers: indices along the axis of examples.
        features: of some examples.
    """
    n = seen.shape[1]
    others = torch.ones(n, dtype=torch.bool).index_fill(0, carriers, False).nonzero().squeeze(1)
    found = features(seen.take(carriers))
    with torch.no_grad():
        value = torch.cat([found, features(seen.take(others))], 1)
    passed = (n / len(carriers)) * (found - found.detach())
    passed = torch.cat([passed, torch.zeros_like(value[:, len(carriers) :])], 1)
    back = torch.cat([carriers, others]).argsort().to(value.device)
    return (value + passed)[:, back]
