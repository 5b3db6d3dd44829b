"""Meta-learned scale and shift, the same for every task: the control that conditioning has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mtl.fewshot.generators.base import GENERATORS, AbstractSiteGenerator, SupportView
from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Site


@GENERATORS.register("static")
class Static(AbstractSiteGenerator):
    """One learned start for all tasks: MAML on scale and shift, or with 0 inner steps a fixed modulation.

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
