"""What a generator is: support set in, meta-parameters of the inner problem out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Modulation, Site


@dataclass(frozen=True)
class SupportView:
    """What a generator may see of a batch of tasks: the support set through the frozen backbone.

    Args:
        features: pooled features, ``(tasks, n, width)``.
        activations: for every site the mean over positions of its activation, ``(tasks, n, site width)``.
        labels: ``(tasks, n)``.
        ways: number of classes.
    """

    features: Tensor
    activations: Sequence[Tensor]
    labels: Tensor
    ways: int


class AbstractGenerator(nn.Module, abc.ABC):
    """Emits ``meta``: what the inner problem takes from the generator, per task or shared, and the inner step sizes.

    The scale and shift vectors that come out cover the backbone's sites in order, and behind them the pooled features
    themselves (a last site that a linear head absorbs when the model is exported).
    """

    def __init__(self, sites: Sequence[Site], width: int, step_size: float, **options: float) -> None:
        super().__init__()
        self.options = {"step_size": step_size, **options}  # what a checkpoint needs to build it again
        self.widths = (*(s.width for s in sites), width)
        self.step_sizes_of = StepSizes(self.widths, step_size)

    @property
    def modulation_width(self) -> int:
        return sum(self.widths)

    @abc.abstractmethod
    def forward(self, view: SupportView) -> Tensors:
        """``meta`` for every task of the view."""

    @abc.abstractmethod
    def init(self, meta: Tensors) -> Tensors:
        """The generator's share of the initial fast weights."""

    @abc.abstractmethod
    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        """Scale and shift that the fast weights stand for."""

    def step_sizes(self, meta: Tensors) -> Mapping[str, Tensor]:
        """A positive step size for every fast weight there may be, broadcastable to it."""
        return self.step_sizes_of.expand(meta["log_lr"])


class StepSizes(nn.Module):
    """Learned inner step sizes: one for the scale and one for the shift of every site, one for the head or task code.

    The idea of MAML++ (arXiv 1810.09502). Kept as logarithms, so that they stay positive and one outer step size suits
    all of them.
    """

    site: Tensor

    def __init__(self, widths: Sequence[int], initial: float) -> None:
        super().__init__()
        self.sites = len(widths)
        self.log_lr = nn.Parameter(torch.full((2 * self.sites + 1,), initial).log())
        site = torch.repeat_interleave(torch.arange(self.sites), torch.tensor(widths))
        self.register_buffer("site", site, persistent=False)

    def expand(self, log_lr: Tensor) -> Tensors:
        """``log_lr`` is shared, ``(2 sites + 1,)``, or per task, ``(tasks, 2 sites + 1)``."""
        scale, shift, rest = log_lr.exp().split([self.sites, self.sites, 1], dim=-1)
        return {
            "scale": scale[..., self.site],
            "shift": shift[..., self.site],
            "code": rest,
            "head.bias": rest,
            "head.weight": rest.unsqueeze(-1),
        }
