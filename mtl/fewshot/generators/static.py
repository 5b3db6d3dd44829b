"""Meta-learned scale and shift, the same for every task: the control that conditioning has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mtl.fewshot.generators.base import GENERATORS, AbstractSiteGenerator, SupportView
from mtl.fewshot.generators.common import CommonScale
from mtl.fewshot.generators.standardising import Standard
from mtl.metagrad.tensors import Tensors
from mtl.networks import Level
from mtl.networks.modulation import Site


@GENERATORS.register("static")
class Static(AbstractSiteGenerator):
    """One learned start for all tasks: MAML on scale and shift, or with 0 inner steps a fixed modulation.

    On a readout, it learns the logarithm of the scale of every feature, the overall strength and the size of logits, as
    :class:`ChannelWise` does.

    Args:
        sites: the backbone's sites.
        width: width of the pooled features.
        step_size: initial inner step size, > 0.
        levels: of the features; one by default.
        standard: statistics that standardise the features, ``"fixed"`` ones or those of each ``"support"`` set.
        even: give the levels of every example one size, see :class:`Standardisation`; by default where there are
            several levels, which no plain checkpoint holds anyway.
    """

    reads_levels = True

    def __init__(
        self,
        sites: Sequence[Site],
        width: int,
        step_size: float = 0.1,
        levels: Sequence[Level] = (),
        standard: Standard = "fixed",
        even: bool | None = None,
    ) -> None:
        super().__init__(sites, width, step_size, levels=levels, standard=standard, even=even)
        own = self.modulation_width - (width if self.reads_out else 0)
        self.scale = nn.Parameter(torch.ones(own))
        self.shift = nn.Parameter(torch.zeros(own))
        self.common = CommonScale(0, width, True, True) if self.reads_out else None

    def forward(self, view: SupportView) -> Tensors:
        tasks, scale, shift = view.labels.shape[0], self.scale, self.shift
        fixed = self.standard.of_tasks(view.features.to(self.scale), view.standard)
        meta = fixed | {"log_lr": self.step_sizes_of.log_lr}
        if self.common is not None:
            readout = self.common.log_scale(scale).exp()
            scale, shift = torch.cat([scale, readout]), torch.cat([shift, torch.zeros_like(readout)])
            meta |= self.common.meta()
        return meta | {"scale": scale.expand(tasks, -1), "shift": shift.expand(tasks, -1)}
