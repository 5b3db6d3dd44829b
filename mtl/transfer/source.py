"""A frozen network as the source of a transfer: from images to the maps of its stages, each image once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from mtl.networks.backbones import Backbone
from mtl.tools.files import write_whole
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


class SourceMaps:
    """A source's maps of a set of images, computed once: a minibatch of them costs a look-up.

    Augmented images are images of their own: compute the maps of a fixed number of views of each. The images that the
    source sees may be larger than those of the target.

    Args:
        stages: maps ``(n, C, H, W)`` of every image, one tensor per stage, in any floating-point type.

    Raises:
        ValueError: no stages, or not of the same images.
    """

    def __init__(self, stages: Sequence[Tensor]) -> None:
        if not stages or len({len(s) for s in stages}) != 1:
            raise ValueError(
                f"stages have {[len(s) for s in stages]} images: expected one tensor per stage of the same"
            )
        self.stages = list(stages)

    @classmethod
    def of(
        cls,
        source: Source,
        images: Iterable[Tensor],
        sides: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> SourceMaps:
        """Pass images through a source.

        Args:
            images: batches ``(n, channels, height, width)`` as the source wants them.
            sides: largest height and width of each stage's maps, to which larger ones are averaged, so that they take
                no more memory than the target's maps have detail for; None leaves them as they are.
            dtype: how they are stored.
        """
        batches = []
        for batch in images:
            maps = source(batch)
            small = maps if sides is None else [_at_most(m, side) for m, side in zip(maps, sides, strict=True)]
            batches.append([m.to(dtype) for m in small])
        return cls([torch.cat(stage) for stage in zip(*batches, strict=True)])

    def __len__(self) -> int:
        return len(self.stages[0])

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        """Float32 maps of the images at these positions, one tensor ``(n, C, H, W)`` per stage."""
        return [stage[indices.to(stage.device)].float() for stage in self.stages]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(s.shape[1] for s in self.stages)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stage's maps."""
        return tuple((s.shape[2], s.shape[3]) for s in self.stages)

    def standardised(self, dtype: torch.dtype = torch.float16) -> SourceMaps:
        """The same with mean 0 and deviation 1 in every channel, over images and places, stored as ``dtype``.

        Then all stages and channels weigh alike in a matching loss; as networks leave them, stages differ by orders of
        magnitude. A channel that never changes becomes zero.
        """
        return SourceMaps([_standardised(s.float()).to(dtype) for s in self.stages])

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        write_whole(Path(path), save({str(i): s.contiguous().cpu() for i, s in enumerate(self.stages)}))

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> SourceMaps:
        """Read what :meth:`save` wrote."""
        stages = load_file(path, device=str(device))
        return SourceMaps([stages[str(i)] for i in range(len(stages))])


def _at_most(maps: Tensor, side: int) -> Tensor:
    height, width = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(height, side), min(width, side)))


def _standardised(stage: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(stage, (0, 2, 3), correction=0, keepdim=True)
    return (stage - mean) / deviation.clamp_min(1e-6 * deviation.amax())
