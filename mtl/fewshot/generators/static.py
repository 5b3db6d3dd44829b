"""Meta-learned scale and shift that are the same for every task: the control that any conditioning has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mtl.fewshot.generators.base import AbstractGenerator, SupportView
from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Modulation, Site


class Static(AbstractGenerator):
    """One learned start for all tasks (MAML on scale and shift; with 0 inner steps, meta-learned static modulation).

    Args:
        sites: the backbone's sites.
        width: width of the pooled features.
        step_size: initial inner step size, > 0.
    """

    def __init__(self, sites: Sequence[Site], width: int, step_size: float = 0.1) -> None:
        super().__init__(sites, width, step_size)
        self.scale = nn.Parameter(torch.ones(self.modulation_width))
        self.shift = nn.Parameter(torch.zeros(self.modulation_width))

    def forward(self, view: SupportView) -> Tensors:
        tasks = view.labels.shape[0]
        return {
            "scale": self.scale.expand(tasks, -1),
            "shift": self.shift.expand(tasks, -1),
            "log_lr": self.step_sizes_of.log_lr,
        }

    def init(self, meta: Tensors) -> Tensors:
        return {"scale": meta["scale"], "shift": meta["shift"]}

    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        return Modulation(weights["scale"], weights["shift"])
