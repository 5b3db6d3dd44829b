"""A short task code, adapted by the inner loop and decoded to scale and shift (CAVIA, arXiv 1810.03642)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.fewshot.generators.base import GENERATORS, AbstractGenerator, SupportView
from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Modulation, Site


@GENERATORS.register("code")
class TaskCode(AbstractGenerator):
    """The fast weights are a code of ``size`` numbers per task, which starts at zero.

    The decoder acts *inside* the inner loss as well as in the outer loss, and first-order estimators miss the first of
    the two parts of its gradient. Code and head share one step size.

    Args:
        sites: the backbone's sites.
        width: width of the pooled features.
        step_size: initial inner step size, > 0.
        size: numbers in the code.

    Raises:
        ValueError: when ``size`` is not positive.
    """

    def __init__(self, sites: Sequence[Site], width: int, step_size: float = 0.1, size: int = 100) -> None:
        super().__init__(sites, width, step_size, size=size)
        # A random decoder and a zero code: the identity at first, and a gradient for both.
        self.decoder = nn.Parameter(torch.randn(2 * self.modulation_width, size) * size**-0.5)
        self.base = nn.Parameter(torch.zeros(2 * self.modulation_width))

    @property
    def adapted_values(self) -> int:
        return self.decoder.shape[1]

    def forward(self, view: SupportView) -> Tensors:
        code = view.features.new_zeros(view.labels.shape[0], self.decoder.shape[1])
        return {"code": code, "decoder": self.decoder, "base": self.base, "log_lr": self.step_sizes_of.log_lr}

    def of_task(self, meta: Tensors, task: int, tasks: int) -> Tensors:
        return meta | {"code": meta["code"][task : task + 1].clone()}

    def init(self, meta: Tensors) -> Tensors:
        return {"code": meta["code"]}

    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        scale, shift = (weights["code"] @ meta["decoder"].T + meta["base"]).chunk(2, dim=-1)
        return self.standard.fold(Modulation(1 + scale, shift), meta)

    def step_sizes(self, meta: Tensors) -> tuple[Tensors, Tensor]:
        _, _, shared = self.step_sizes_of.split(meta["log_lr"])
        return {"code": shared}, shared

    def identity(self, meta: Tensors) -> Tensors:
        return meta | {"base": torch.zeros_like(meta["base"])}  # a code starts at zero, so the offset is all there is
