"""Comparing the shapes of letters, in any orientation: which of them look alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Correlation above which two shapes count as one; by eye on ranked pairs: b/q .99, c/C .97, p/P .83, h/n .58.
LOOKALIKE = 0.80


def similarities(bitmaps: Tensor) -> tuple[Tensor, Tensor]:
    """How alike shapes are in their most favourable orientation, and each shape with itself turned.

    Correlation of the largest connected stroke of each bitmap (so that dots and accents do not hide a common base),
    moved to its centre of mass and scaled to one radius of gyration, maximised over sixteen rotations.

    Args:
        bitmaps: ``(n, 64, 64)`` uint8.

    Returns:
        ``(n, n)`` similarities and ``(n,)`` self-similarities under turns of 45 degrees or more, both at most 1.
    """
    stroke = _largest_component(F.avg_pool2d(bitmaps[:, None].float() / 255, 2))
    turns = torch.arange(16) * (2 * torch.pi / 16)
    views = torch.stack([_normalise(stroke, turn) for turn in turns], 1)  # (n, 16, pixels)
    pairs = torch.stack([views[:, 0] @ views[:, k].T for k in range(16)]).amax(0)
    itself = torch.einsum("np,nkp->nk", views[:, 0], views)[:, 2:15].amax(1)
    return torch.maximum(pairs, pairs.T), itself


def _largest_component(ink: Tensor) -> Tensor:
    """Keep the connected component with most pixels; ``(n, 1, s, s)`` in and out."""
    mask = (ink > 0.25).float()
    label = mask * torch.arange(1, mask[0].numel() + 1).view_as(mask[0])
    while not torch.equal(grown := F.max_pool2d(label, 3, 1, 1) * mask, label):
        label = grown
    biggest = torch.stack([torch.bincount(x.long()[x > 0]).argmax() for x in label.flatten(1)])
    return ink * (label == biggest.view(-1, 1, 1, 1))


def _normalise(stroke: Tensor, turn: Tensor) -> Tensor:
    """Resample to unit radius of gyration, turned; zero-mean unit-norm rows ``(n, pixels)``."""
    side = stroke.shape[-1]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    mass = stroke.sum((1, 2, 3))
    cx = (stroke.sum((1, 2)) * axis).sum(-1) / mass
    cy = (stroke.sum((1, 3)) * axis).sum(-1) / mass
    r2 = (stroke[:, 0] * ((axis - cx.view(-1, 1, 1)) ** 2 + (axis[:, None] - cy.view(-1, 1, 1)) ** 2)).sum(
        (1, 2)
    ) / mass
    size = 2.2 * r2.sqrt()
    rows = torch.stack([turn.cos() * size, -turn.sin() * size, cx, turn.sin() * size, turn.cos() * size, cy], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), [len(stroke), 1, 24, 24], align_corners=False)
    flat = F.grid_sample(stroke, grid, align_corners=False).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def distinct(similarity: Tensor, threshold: float = LOOKALIKE) -> list[int]:
    """Greedy choice, in order, of items less similar than ``threshold`` to every item chosen before.

    >>> distinct(torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]))
    [0, 2]
    """
    kept: list[int] = []
    for i in range(len(similarity)):
        if not kept or similarity[i, kept].max() < threshold:
            kept.append(i)
    return kept
