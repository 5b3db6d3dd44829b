"""A frozen network as the source of a transfer: from images to the maps of its stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl.networks.backbones import Backbone
from mtl.transfer.taps import Taps


class Source:
    """The stages of a frozen backbone.

    Args:
        backbone: image backbone from :func:`mtl.load_backbone`.
        names: modules to tap in place of its stages, see :class:`~mtl.transfer.taps.Taps`.
        most: maximum number of stages if ``names`` is None.

    Raises:
        ValueError: the backbone does not take images, or has no stages.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str] | None = None, most: int = 4) -> None:
        example = backbone.example_inputs(1)
        if example.named:
            raise ValueError(f"{backbone.name} takes texts; expected a backbone for images")
        self.backbone = backbone
        height, width = example.tensor.shape[2:]
        self.taps = Taps(backbone.model, lambda: backbone.features(example), (height, width), names, most)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images ``(n, channels, height, width)`` to float32 maps ``(n, C, H, W)``, one per stage, without a graph."""
        _, maps = self.taps(lambda: self.backbone.features(images))
        return [m.float() for m in maps]
