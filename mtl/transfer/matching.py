"""A target network with adapters to its source's stages, and losses that pull its maps towards the source's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.metagrad.execution import autocast
from mtl.transfer.taps import Taps
from mtl.transfer.weighting import Choice

Size = tuple[int, int]
Pairs = list[Tensor]
"""For each source stage ``(n, targets, places, C)``: every target stage with its channels, at its places."""


class Student(nn.Module):
    """A target network that also shows its stages, and the 1 x 1 convolutions that make them comparable to a source's.

    One module, so that an inner loop adapts the adapters with the target, as ordinary training does: only adapters that
    move along can match a target that has moved.

    Args:
        network: the target; takes images, returns logits.
        taps: of its stages.
        channels: of the source's stages.
        precision: ``torch.bfloat16`` runs the network, and nothing else, under autocast; None as stored.

    Raises:
        ValueError: for float16, whose gradients of gradients would underflow.
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
        """Logits, the maps of its stages, and each of them as each source stage would show it.

        Args:
            images: ``(n, channels, height, width)``.
            sizes: of the source's maps; None leaves the adapters alone.

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
    """From each target stage to the channels and the places of one source stage.

    1 x 1 convolutions, written as matrix products over places: their second derivatives are again products, many times
    as fast as those of a convolution of a small map.
    """

    def __init__(self, own: Sequence[int], channels: int) -> None:
        super().__init__(nn.Linear(c, channels) for c in own)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """``(n, targets, places, channels)``."""
        return torch.stack([_adapted(layer, x, size) for layer, x in zip(self, maps, strict=True)], 1)


def _adapted(layer: nn.Module, x: Tensor, size: Size) -> Tensor:
    """Where there are fewer places the product costs least, and the order makes no difference to the result."""
    if x[0, 0].numel() >= size[0] * size[1]:
        return layer(by_place(resized(x, size)))
    few = layer(by_place(x)).mT.unflatten(2, x.shape[2:])
    return by_place(resized(few, size))


def by_place(x: Tensor) -> Tensor:
    """A map ``(n, C, H, W)`` as ``(n, places, C)``."""
    return x.flatten(2).mT


def resized(x: Tensor, size: Size) -> Tensor:
    """A map at another size: averaged down to fewer places, interpolated up to more."""
    if x.shape[2:] == size:
        return x
    if x.shape[2] >= size[0] and x.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def matching_loss(choice: Choice, source: Sequence[Tensor], adapted: Pairs) -> Tensor:
    r"""How far a target's adapted maps are from a source's, weighed by what and where (arXiv 1905.05901).

    .. math:: \sum_{m,n} \lambda^{m,n} \sum_c w_c^{m,n} \frac{1}{HW} \sum_{i,j} \big(S^m_{cij} - r(T^n)_{cij}\big)^2

    Args:
        choice: of the same examples.
        source: maps of each source stage, ``(n, C_m, H_m, W_m)``.
        adapted: from :class:`Student`.

    Returns:
        ``(n,)``, a loss per example.
    """
    rows = [
        ((by_place(s)[:, None] - r).square().mean(2) * what).sum(2)
        for s, r, what in zip(source, adapted, choice.what, strict=True)
    ]
    return (choice.where * torch.stack(rows, 1)).sum((1, 2))


def attention_loss(source: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    r"""Attention transfer (arXiv 1612.03928): where a stage is active, whatever its channels say.

    The mean over channels of a map's squares, at unit length, is compared stage by stage, counted from the last.

    Args:
        source: maps of each source stage, ``(n, C, H, W)``.
        maps: of the target's own stages; no adapters are needed.

    Returns:
        ``(n,)``, a loss per example.
    """
    pairs = zip(reversed(source), reversed(maps), strict=False)
    return torch.stack([_attention_distance(s, t) for s, t in pairs]).sum(0)


def _attention_distance(source: Tensor, target: Tensor) -> Tensor:
    height, width = (min(a, b) for a, b in zip(source.shape[2:], target.shape[2:], strict=True))
    theirs, own = (_attention(x, (height, width)) for x in (source, target))
    return (theirs - own).square().sum(1)


def _attention(x: Tensor, size: Size) -> Tensor:
    return F.normalize(resized(x.square().mean(1, keepdim=True), size).flatten(1), dim=1)
