"""Sites of a network, and modulations: one scale and shift per channel of every site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SiteKind = Literal["norm", "ssf", "none"]


@dataclass(frozen=True)
class Site:
    """A place in the network whose activation is scaled and shifted, channel by channel.

    Args:
        name: dotted path of the module, ``"blocks.3.norm1"``.
        width: number of channels.
        channel_dim: ``-1`` for tokens and channels-last maps, ``1`` for NCHW maps.
        block: path up to the last numbered ancestor, ``"blocks.3"``; ``""`` when there is none.
    """

    name: str
    width: int
    channel_dim: int
    block: str


@dataclass(frozen=True)
class Modulation:
    """One scale and one shift per channel of every site: ``y = scale * x + shift``.

    Args:
        scale: ``(tasks, P)``, with ``P`` the sum of the site widths, in site order.
        shift: ``(tasks, P)``.
    """

    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.scale.dim() != 2 or self.scale.shape != self.shift.shape:
            raise ValueError(
                f"Modulation(scale {tuple(self.scale.shape)}, shift {tuple(self.shift.shape)}): "
                "both must be (tasks, P); add the task axis with unsqueeze(0)"
            )

    @property
    def tasks(self) -> int:
        return self.scale.shape[0]

    @property
    def width(self) -> int:
        return self.scale.shape[1]

    @staticmethod
    def identity(
        tasks: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Modulation:
        """The modulation that changes nothing, in ``dtype`` (float32 also for a bfloat16 network).

        >>> Modulation.identity(2, 3).scale.tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        shape = (tasks, width)
        return Modulation(torch.ones(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))
