"""A convolutional network that is small enough to be trained a hundred times on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """A 3 x 3 convolution of stride two, batch normalisation and a ReLU per stage, then a linear classifier.

    Args:
        stem: stride of the first convolution, whose kernel grows with it: 4 for larger images at little cost.

    Attributes:
        feature_info: its stages, told as timm's networks tell theirs.
    """

    def __init__(
        self, num_classes: int, in_chans: int = 3, channels: Sequence[int] = (24, 48, 64, 96), stem: int = 2
    ) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, str | int]] = []
        for i, (before, after) in enumerate(zip((in_chans, *channels), channels, strict=False)):
            stride = 2 if i else stem
            convolution = nn.Conv2d(before, after, 2 * stride - 1, stride, padding=stride - 1, bias=False)
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
            self.feature_info.append({"module": f"stages.{i}", "num_chs": after, "reduction": stem * 2**i})
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(images).mean((2, 3)))
