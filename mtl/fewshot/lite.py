"""Gradients through some support examples only, for large support sets (LITE, arXiv 2107.01105).

The loss sees every example, at the price of a plain forward pass. Gradients flow through ``count`` of the ``n``
examples, each weighted by ``n / count``, so that on average over the draws the gradient is the full one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from mtl.episode import Examples
from mtl.networks.backbones import Prepared


def lite_examples(support: Examples, count: int | None) -> Callable[[int], Tensor | None]:
    """A function from the inner step to the sorted indices of the examples that gradients flow through; None means all.

    It depends on the examples and the step alone, so that another process or run draws the same indices.
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


def lite_features(prepared: Prepared, chosen: Tensor, features: Callable[[Prepared], Tensor]) -> Tensor:
    """Features ``(tasks, n, D)`` of all examples, with gradients through the chosen ones alone.

    Args:
        chosen: indices along the axis of examples.
        features: computes the features of some examples.
    """
    n = prepared.shape[1]
    others = torch.ones(n, dtype=torch.bool).index_fill(0, chosen, False).nonzero().squeeze(1)
    differentiable = features(prepared.take(chosen))
    with torch.no_grad():
        value = torch.cat([differentiable, features(prepared.take(others))], 1)
    passed = (n / len(chosen)) * (differentiable - differentiable.detach())
    passed = torch.cat([passed, torch.zeros_like(value[:, len(chosen) :])], 1)
    back = torch.cat([chosen, others]).argsort().to(value.device)
    return (value + passed)[:, back]
