"""What all tasks share of the scale: one per channel, and for a readout its overall strength and the size of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.metagrad.tensors import Tensors

BASE_SPEED = 5.0  # as if the outer step size of the scales per channel were five times that of other weights


class CommonScale(nn.Module):
    """Learned log-scales, the same for all tasks; they start at the identity.

    The overall scale of a readout is the strength of a ridge head, whose penalty is fixed.

    Args:
        inner: channels inside the network.
        width: of the features.
        per_channel: learn a log-scale for every channel.
        readout: learn the overall scale of the features and a factor on the logits.
    """

    def __init__(self, inner: int, width: int, per_channel: bool, readout: bool) -> None:
        super().__init__()
        self.inner, self.width = inner, width
        self.base = nn.Parameter(torch.zeros(inner + width)) if per_channel else None
        self.log_gain = nn.Parameter(torch.zeros(())) if readout else None
        self.log_logit_scale = nn.Parameter(torch.zeros(1)) if readout else None

    def per_channel(self) -> Tensor:
        """Log-scale of every channel, ``(channels,)``; only where there is one."""
        assert self.base is not None
        return BASE_SPEED * self.base

    def log_scale(self, like: Tensor) -> Tensor:
        """``(channels,)``, of the dtype and on the device of ``like``."""
        base = like.new_zeros(self.inner + self.width) if self.base is None else self.per_channel()
        return base if self.log_gain is None else base + F.pad(self.log_gain.expand(self.width), (self.inner, 0))

    def meta(self) -> Tensors:
        """What ``meta`` carries for the logits."""
        return {} if self.log_logit_scale is None else {"log_logit_scale": self.log_logit_scale}
