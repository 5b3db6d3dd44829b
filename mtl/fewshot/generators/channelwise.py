"""The channel-wise generator: one small network, shared by all channels, that reads what the labels say of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.generators.base import GENERATORS, AbstractSiteGenerator, SupportView
from mtl.fewshot.generators.channel_network import ChannelNetwork
from mtl.fewshot.generators.channel_statistics import channel_statistics, level_evidence, level_factors
from mtl.fewshot.generators.common import CommonScale
from mtl.fewshot.generators.neighbours import Block
from mtl.fewshot.generators.standardising import Standard
from mtl.metagrad.tensors import Tensors
from mtl.networks import Level
from mtl.networks.modulation import Site

LIMIT = 6.0  # of log-scales, either way
EPS = 1e-6
EVIDENCE_POWER = 8.0  # of exp(-loss) of a level, where levels count by it alone
ALONE = 0.3  # part of the training tasks in which the rule does without the scales common to all


@dataclass(frozen=True)
class Reading:
    """What is read of the support sets of a batch of tasks.

    Args:
        values: standardised activations and features, ``(tasks, n, channels)``.
        statistics: of every channel, see :func:`channel_statistics`.
        evidence: of every block, see :func:`level_evidence`.
        shots: examples of the smallest class and of a class on average, ``(tasks, 2)``.
        size: of the activations of each channel's site, zero for features, ``(tasks, channels)``.
        standard: statistics of each task that standardise its features, as ``meta`` carries them.
    """

    values: Tensor
    statistics: Tensor
    evidence: Tensor
    shots: Tensor
    size: Tensor
    standard: Tensors


@GENERATORS.register("channelwise")
class ChannelWise(AbstractSiteGenerator):
    """A rule for channels: "trust those whose classes stand apart, at this depth, in tasks of this kind".

    One network is shared by all channels of all sites and of all levels of the features. For each channel it reads the
    class statistics over the labelled support set (:func:`channel_statistics`), how well the level of the channel
    separates the classes (:func:`level_evidence`), where the level is, and a vector of the whole task. It emits a
    log-scale, and inside the network a shift. Thousands of weights, however wide the network.

    Invariant to the order of the support examples and to the numbering of classes; equivariant to the order of channels
    inside a level, unless there are weights per channel. Any number of ways and of (unequal) shots.

    Args:
        sites: the backbone's sites.
        width: width of the features.
        step_size: initial inner step size, > 0.
        levels: of the features; one by default.
        hidden: width of the hidden layers.
        per_channel: also learn a log-scale for every channel and a vector for every level. The weights then belong to
            this backbone; without, they work on any other.
        standard: statistics that standardise the features, ``"fixed"`` ones or those of each ``"support"`` set.
        even: give the levels of every example one size, see :class:`Standardisation`; by default where there are
            several levels, which no plain checkpoint holds anyway.
    """

    reads_levels = True
    of_support: ClassVar[frozenset[str]] = frozenset({"level_loss"})

    def __init__(
        self,
        sites: Sequence[Site],
        width: int,
        step_size: float = 0.1,
        levels: Sequence[Level] = (),
        hidden: int = 48,
        per_channel: bool = True,
        standard: Standard = "fixed",
        even: bool | None = None,
    ) -> None:
        options = {"hidden": hidden, "per_channel": per_channel, "standard": standard, "even": even}
        super().__init__(sites, width, step_size, levels=levels, **options)
        inner = [Block("site", -1 - i, (i + 1) / (len(sites) + 1), s.width) for i, s in enumerate(sites)]
        blocks = [*inner, *(Block(v.kind, v.stage, v.depth, v.width, v.cells) for v in self.levels)]
        self.network = ChannelNetwork(blocks, hidden, by_index=per_channel)
        self.common = CommonScale(self.modulation_width - width, width, per_channel, self.reads_out)
        self.blocks = tuple(blocks)

    def forward(self, view: SupportView) -> Tensors:
        # The generator stays in float32 where the backbone runs in low precision.
        with torch.autocast(view.features.device.type, enabled=False):
            return self.emit(self.read(view))

    def read(self, view: SupportView) -> Reading:
        """What it reads of the support set."""
        features = view.features.to(self.step_sizes_of.log_lr)
        fixed = self.standard.of_tasks(features, view.standard)
        sites = [a.to(features) for a in view.activations]
        sizes = [a.square().mean((1, 2), keepdim=True).sqrt().clamp_min(EPS) for a in sites]
        relative = [a / size for a, size in zip(sites, sizes, strict=True)]
        own = self.standard.apply_to(features, fixed)
        values = torch.cat([*relative, own], -1) if relative else own
        statistics = channel_statistics(values, view.labels, view.ways)
        evidence = level_evidence(values, view.labels, view.ways, [b.width for b in self.blocks])
        of_site = [size[:, 0].expand(-1, a.shape[-1]) for size, a in zip(sizes, sites, strict=True)]
        size = torch.cat([*of_site, torch.zeros_like(features[:, 0])], 1)
        return Reading(values, statistics, evidence, _shots(view.labels, view.ways).to(features), size, fixed)

    def emit(self, reading: Reading) -> Tensors:
        """``meta`` from what was read."""
        emitted = self.network(reading.statistics, reading.evidence, reading.shots)
        log_scale = emitted[..., 0].clamp(-LIMIT, LIMIT) + self.common.log_scale(reading.values)
        # Shifts are relative to the site too. Those of the features are left to the head.
        shift = emitted[..., 1] * reading.size
        emitted = {"scale": log_scale.exp(), "shift": shift, "log_lr": self.step_sizes_of.log_lr}
        loss = {"level_loss": reading.evidence[:, -len(self.levels) :, 0]} if len(self.levels) > 1 else {}
        return reading.standard | self.common.meta() | emitted | loss

    def for_training(self, view: SupportView) -> Tensors:
        """As for adaptation, but some tasks do without the scales that are common to all tasks.

        So the rule learns to do alone what it can, and new kinds of question profit. Which tasks, their own numbers
        say: a run that is resumed repeats them.
        """
        return self.some_alone(self(view), view)

    def some_alone(self, meta: Tensors, view: SupportView) -> Tensors:
        """``meta`` of a view, without the scales that are common to all tasks in some of them."""
        if (rule := self.rule(meta)) is None:
            return meta
        told = view.features[:, 0].double().abs().sum(-1)
        alone = ((told * 1e4).frac() < ALONE).unsqueeze(-1)
        return meta | {"scale": torch.where(alone, rule["scale"], meta["scale"])}

    def rule(self, meta: Tensors) -> Tensors | None:
        """The same ``meta`` without the scales that are common to all tasks; None where there are none."""
        if self.common.base is None:
            return None
        return meta | {"scale": meta["scale"] * (-self.common.per_channel()).exp()}

    def by_evidence(self, meta: Tensors) -> Tensor | None:
        if (loss := meta.get("level_loss")) is None:
            return None
        factors = level_factors(loss, self.standard.widths, EVIDENCE_POWER)
        factors = factors / factors.square().mean(1, keepdim=True).sqrt()
        return F.pad(factors, (meta["scale"].shape[1] - factors.shape[1], 0), value=1.0)

    def static(self, meta: Tensors) -> Tensors | None:
        if self.common.base is None:
            return None
        scale = self.common.log_scale(meta["scale"]).exp().expand_as(meta["scale"])
        return meta | {"scale": scale, "shift": torch.zeros_like(meta["shift"])}


def _shots(labels: Tensor, ways: int) -> Tensor:
    """Examples of the smallest class and of a class on average, ``(tasks, 2)``."""
    counts = F.one_hot(labels, ways).sum(1).float()
    return torch.stack([counts.amin(-1), counts.mean(-1)], -1)
