"""Comparisons of meta-gradients."""

from __future__ import annotations

import torch

import mtl


def flat(result: mtl.metagrad.MetaGradient) -> torch.Tensor:
    """All values in one vector."""
    return torch.cat([g.flatten() for g in result.grads.values()])


def agreement(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Cosine, and ratio of the norms."""
    return float(torch.cosine_similarity(found, expected, 0)), float(found.norm() / expected.norm())
