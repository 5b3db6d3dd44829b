"""Pooling the positions of one stage, in float32: images on their grid, texts under their mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["map", "channels-last", "tokens"]
_EPS = 1e-6  # variance; a channel that is constant over positions still has a finite gradient


@dataclass(frozen=True)
class Positions:
    """What the token positions of a network mean.

    Args:
        prefix: tokens before those of the image patches, such as class token and registers.
        has_class_token: the first token stands for the whole example.
        causal: every token sees those before it only: the last token knows all, and the first one, which draws
            attention whatever it is, is no part of mean and deviation.
    """

    prefix: int = 0
    has_class_token: bool = False
    causal: bool = False


def precise(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def as_map(x: Tensor, form: Form, aspect: float, prefix: int) -> Tensor:
    """Activations of an image as ``(n, C, h, w)``; ``(n, C, positions, 1)`` where tokens do not fill a grid.

    Args:
        x: ``(n, C, h, w)``, ``(n, h, w, C)``, or tokens ``(n, length, C)``.
        form: which of them.
        aspect: height over width of the image.
        prefix: tokens at the front that are no patches.
    """
    if form == "map":
        return x
    if form == "channels-last":
        return x.movedim(-1, 1)
    height, width, before = patch_grid(x.shape[1], aspect, prefix)
    return x[:, before:].mT.unflatten(2, (height, width))


def patch_grid(length: int, aspect: float, prefix: int) -> tuple[int, int, int]:
    """Rows and columns of the patches, and how many tokens are before them.

    >>> patch_grid(197, 1.0, 1), patch_grid(196, 1.0, 1), patch_grid(7, 1.0, 0)
    ((14, 14, 1), (14, 14, 0), (7, 1, 0))
    """
    for before in (prefix, 0):  # the prefix may join the patches after the first stage
        patches = length - before
        height = round(max(patches, 0) ** 0.5 * aspect**0.5)
        if patches > 0 and height and patches % height == 0 and _near(height, patches // height, aspect):
            return height, patches // height, before
    before = prefix if length > prefix else 0
    return length - before, 1, before


def _near(height: int, width: int, aspect: float) -> bool:
    return abs(height - width * aspect) <= max(1.0, aspect) / 2


def map_mean(x: Tensor) -> Tensor:
    """``(n, C, h, w)`` to ``(n, C)``."""
    return precise(x).mean((2, 3))


def map_std(x: Tensor) -> Tensor:
    """Deviation over positions, ``(n, C, h, w)`` to ``(n, C)``."""
    # A new tensor, where torch.var would keep x for its gradient: the next layer may change x in place.
    centred = precise(x) - precise(x).mean((2, 3), keepdim=True)
    return (centred.square().mean((2, 3)) + _EPS).sqrt()


def map_grid(x: Tensor, side: int) -> Tensor:
    """Means of the cells of a grid, ``(n, C, h, w)`` to ``(n, C * side * side)``, cells of a channel together."""
    return F.adaptive_avg_pool2d(precise(x), side).flatten(1)


def token_weights(x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Which tokens count, ``(n, length, 1)``, summing to one per example.

    Args:
        x: ``(n, length, C)``.
        mask: ``(n, length)``, 0 on padding; None when there is none.
        causal: leave out the first token of texts that have more than one.
    """
    kept = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.to(x.device).float()
    if causal:
        first = (kept.cumsum(1) == 1) & (kept > 0)
        kept = torch.where(first & (kept.sum(1, keepdim=True) > 1), 0.0, kept)
    return (kept / kept.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)


def token_mean(x: Tensor, weights: Tensor) -> Tensor:
    """``(n, length, C)`` to ``(n, C)``."""
    return (precise(x) * weights).sum(1)


def token_std(x: Tensor, weights: Tensor) -> Tensor:
    """Deviation over the tokens that count, ``(n, length, C)`` to ``(n, C)``."""
    centred = precise(x) - token_mean(x, weights).unsqueeze(1)
    return ((centred.square() * weights).sum(1) + _EPS).sqrt()


def one_token(x: Tensor, mask: Tensor | None, last: bool) -> Tensor:
    """The first token, or the last that is not padding: ``(n, length, C)`` to ``(n, C)``."""
    if not last:
        return precise(x[:, 0])
    if mask is None:
        return precise(x[:, -1])
    index = (mask.to(x.device) * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)
    return precise(x[torch.arange(x.shape[0], device=x.device), index])
