"""A target network with adapters to its source's stages, and losses that pull its feature maps towards the source's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.metagrad.execution import autocast
from mtl.transfer.taps import Taps
from mtl.transfer.weighting import PairWeights

Size = tuple[int, int]
Pairs = list[Tensor]
"""One tensor ``(n, targets, places, C)`` per source stage: all target stages, adapted to its channels and size."""


class Student(nn.Module):
    """A target network that also returns its stages, and 1 x 1 convolutions that adapt them to a source's channels.

    Both are one module, so that an inner loop adapts the adapters together with the target, as ordinary training does.

    Args:
        network: the target, from images to logits.
        taps: taps of its stages.
        channels: channels of the source's stages.
        precision: ``torch.bfloat16`` runs the network, but not the adapters, under autocast; None: as stored.

    Raises:
        ValueError: float16, whose second derivatives would underflow.
    """

    def __init__(
        self, network: nn.Module, taps: Taps, channels: Sequence[int], precision: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if precision not in (None, torch.bfloat16):
            raise ValueError(f"precision={precision}: expected torch.bfloat16, or None to run the target as stored")
        self.network = network
        self.taps = taps
        self.precision = precision
        self.adapters = nn.ModuleList(Adapters(taps.channels, c) for c in channels)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> tuple[Tensor, list[Tensor], Pairs]:
        """Logits, the maps of the target's stages, and the maps adapted to each source stage.

        Args:
            images: ``(n, channels, height, width)``.
            sizes: heights and widths of the source's maps; None skips the adapters.

        Returns:
            ``(n, classes)``; ``(n, C, H, W)`` per stage; ``(n, targets, H_m W_m, C_m)`` per source stage ``m``.
        """
        with autocast(images.device, self.precision):
            logits, maps = self.taps(lambda: self.network(images))
        if self.precision is not None:
            logits, maps = logits.float(), [m.float() for m in maps]
        if sizes is None:
            return logits, maps, []
        return logits, maps, [adapters(maps, size) for adapters, size in zip(self.adapters, sizes, strict=True)]


class Adapters(nn.ModuleList):
    """Adapt every target stage to the channels and the size of one source stage.

    They are 1 x 1 convolutions, written as matrix products over places, whose second derivatives are many times as fast
    as those of convolutions of small maps.
    """

    def __init__(self, target_channels: Sequence[int], channels: int) -> None:
        super().__init__(nn.Linear(c, channels) for c in target_channels)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """``(n, targets, places, channels)``."""
        return torch.stack([_adapt(layer, x, size) for layer, x in zip(self, maps, strict=True)], 1)


def _adapt(layer: nn.Module, x: Tensor, size: Size) -> Tensor:
    """Apply the product at the smaller size, where it costs less; it commutes with resizing."""
    if x[0, 0].numel() >= size[0] * size[1]:
        return layer(by_place(resize(x, size)))
    small = layer(by_place(x)).mT.unflatten(2, x.shape[2:])
    return by_place(resize(small, size))


def by_place(x: Tensor) -> Tensor:
    """Reshape a map ``(n, C, H, W)`` to ``(n, places, C)``."""
    return x.flatten(2).mT


def resize(x: Tensor, size: Size) -> Tensor:
    """Resize a map: average pooling to a smaller size, bilinear interpolation otherwise."""
    if x.shape[2:] == size:
        return x
    if x.shape[2] >= size[0] and x.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def matching_loss(weights: PairWeights, source: Sequence[Tensor], adapted: Pairs) -> Tensor:
    r"""Weighted distance between a target's adapted maps and a source's (arXiv 1905.05901).

    .. math:: \sum_{m,n} \lambda^{m,n} \sum_c w_c^{m,n} \frac{1}{HW} \sum_{i,j} \big(S^m_{cij} - r(T^n)_{cij}\big)^2

    Args:
        weights: weights for the same examples.
        source: maps of each source stage, ``(n, C_m, H_m, W_m)``.
        adapted: adapted maps from :class:`Student`.

    Returns:
        ``(n,)``, one loss per example.
    """
    rows = [
        ((by_place(s)[:, None] - r).square().mean(2) * what).sum(2)
        for s, r, what in zip(source, adapted, weights.what, strict=True)
    ]
    return (weights.where * torch.stack(rows, 1)).sum((1, 2))


def attention_loss(source: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    r"""Attention transfer (arXiv 1612.03928): distance between attention maps, stage by stage from the last.

    An attention map is the mean over channels of a feature map's squares, normalised to unit length.

    Args:
        source: maps of each source stage, ``(n, C, H, W)``.
        maps: maps of the target's stages, without adapters.

    Returns:
        ``(n,)``, one loss per example.
    """
    pairs = zip(reversed(source), reversed(maps), strict=False)
    return torch.stack([_attention_distance(s, t) for s, t in pairs]).sum(0)


def _attention_distance(source: Tensor, target: Tensor) -> Tensor:
    height, width = (min(a, b) for a, b in zip(source.shape[2:], target.shape[2:], strict=True))
    return (_attention(source, (height, width)) - _attention(target, (height, width))).square().sum(1)


def _attention(x: Tensor, size: Size) -> Tensor:
    return F.normalize(resize(x.square().mean(1, keepdim=True), size).flatten(1), dim=1)
