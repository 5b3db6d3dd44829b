"""A channel-wise rule whose answer a long inner loop refines: how much each level counts, at emitted rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl.fewshot.generators.base import GENERATORS, AbstractGenerator, SupportView
from mtl.fewshot.generators.block_network import BlockNetwork
from mtl.fewshot.generators.channelwise import ChannelWise, Reading
from mtl.metagrad.emitted_sgd import DECAY, MOMENTUM, EmittedSGD
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.tensors import Tensors
from mtl.networks import Level
from mtl.networks.modulation import Modulation, Site

PLAIN = -2.0  # log-strength of a level as it is beside what the rule makes of it, at first
START_MOMENTUM, START_DECAY = 0.0, -7.0  # a half; next to nothing
SHORT = 2.3  # log of how much shorter
NEVER = -30.0  # log of a step size that is none


@GENERATORS.register("refined")
class Refined(AbstractGenerator):
    r"""Starts where :class:`ChannelWise` does, and lets the inner loop weigh levels: fifty steps, not one.

    The fast weights are log-strengths: of each site and level as the rule scales it, and once more of each level as it
    is. The scale of a channel of level :math:`l` is
    :math:`\sqrt{e^{2 a_l} s_c^2 + e^{2 b_l}}`, where :math:`s_c` is what the rule emits: kernels of both kinds are
    added up, as in multiple kernel learning, and the inner loss, the cross-entropy of each support example under a
    ridge regression fitted to all the others, says how. A second small network, shared by all levels, emits where the
    strengths start and their step sizes, level by level, and momentum and decay, task by task.

    A few dozen fast weights for thousands of channels: many steps do not fit noise with them, where steps on each
    channel do. Nothing moves in tasks in which a class has a single example, as there is none to leave out.

    On a readout with :class:`mtl.CentredRidge` a step costs a matrix of the size of the support set and no pass over
    features. Meta-train it through all of its steps, see :class:`mtl.Windowed`; from a trained rule with
    :meth:`start_from`.

    Args:
        sites: the backbone's sites.
        width: width of the features.
        step_size: initial step size of every strength, > 0.
        levels: of the features; one by default.
        options: of :class:`ChannelWise`.
    """

    reads_levels = True
    of_support: ClassVar[frozenset[str]] = ChannelWise.of_support | {"kernels"}
    of_loop: ClassVar[tuple[str, ...]] = ("step_sizes_of.", "rates.")
    inner_steps: ClassVar[int | None] = 50

    def __init__(
        self,
        sites: Sequence[Site],
        width: int,
        step_size: float = 0.3,
        levels: Sequence[Level] = (),
        **options: Any,
    ) -> None:
        rule = ChannelWise(sites, width, levels=levels, **options)
        super().__init__(sites, width, levels=levels, **(rule.options | {"step_size": step_size}))
        self.rule, self.inside = rule, len(sites)
        self.standard = rule.standard
        rule.step_sizes_of = self.step_sizes_of
        start, of_task = (0.0, PLAIN, 0.0, 0.0), (START_MOMENTUM, START_DECAY)
        hidden, own = rule.options["hidden"], rule.options["per_channel"]
        self.rates = BlockNetwork(rule.blocks, start, of_task, hidden, own)

    @property
    def adapted_values(self) -> int:
        return 2 * len(self.rule.blocks) - self.inside

    def optimizer(self) -> AbstractInnerOptimizer:
        return EmittedSGD()

    def start_from(self, rule: ChannelWise, *, keep: bool = False) -> None:
        """Take the weights of a trained rule of the same options, its statistics included, but not its step sizes.

        Args:
            keep: train no weight of the rule any more. Trained together, the rule comes to rely on the loop, and to
                learn when not to move takes longer than most runs last.

        Raises:
            RuntimeError: it is of other levels or options.
        """
        own = {k: v for k, v in self.rule.state_dict().items() if k.startswith("step_sizes_of.")}
        self.rule.load_state_dict(rule.state_dict() | own)
        self.learn("rates" if keep else "all")

    def forward(self, view: SupportView) -> Tensors:
        with torch.autocast(view.features.device.type, enabled=False):
            reading = self.rule.read(view)
            return self._emit(reading, self.rule.emit(reading))

    def for_training(self, view: SupportView) -> Tensors:
        """As for adaptation, but the rule does alone in some tasks, see :meth:`ChannelWise.for_training`."""
        with torch.autocast(view.features.device.type, enabled=False):
            reading = self.rule.read(view)
            return self._emit(reading, self.rule.some_alone(self.rule.emit(reading), view))

    def _emit(self, reading: Reading, meta: Tensors) -> Tensors:
        of_block, of_task = self.rates(reading.statistics, reading.evidence, reading.shots)
        ruled, plain, rate, plain_rate = of_block.unbind(-1)
        rates = self.step_sizes_of.log_lr[-1] + torch.cat([rate, plain_rate[:, self.inside :]], 1)
        still = reading.shots[:, :1] < 2
        return meta | {
            "strength": torch.cat([ruled, plain[:, self.inside :]], 1),
            "log_lr": torch.where(still, NEVER, rates),
            MOMENTUM: of_task[:, 0],
            DECAY: of_task[:, 1],
            **self._kernels(reading.values, meta["scale"]),
        }

    def _kernels(self, values: Tensor, scale: Tensor) -> Tensors:
        """Inner products of centred features of every level, as scaled and as they are; none with sites inside."""
        if self.inside:
            return {}
        centred, width = values - values.mean(1, keepdim=True), values.shape[-1]
        widths = [b.width for b in self.rule.blocks]
        both = [*(centred * scale.unsqueeze(1)).split(widths, -1), *centred.split(widths, -1)]
        return {"kernels": torch.stack([x @ x.mT / width for x in both], 1)}

    def init(self, meta: Tensors) -> Tensors:
        return {"strength": torch.zeros_like(meta["strength"])}

    def modulation(self, weights: Tensors, meta: Tensors) -> Modulation:
        blocks, level = len(self.rule.blocks), self.rates.level
        ruled, plain = (meta["strength"] + weights["strength"]).split([blocks, blocks - self.inside], 1)
        plain = torch.cat([torch.full_like(ruled[:, : self.inside], -torch.inf), plain], 1)
        scale = ((2 * ruled).exp()[:, level] * meta["scale"].square() + (2 * plain).exp()[:, level]).sqrt()
        return self.standard.fold(Modulation(scale, meta["shift"]), meta)

    def support_kernel(self, weights: Tensors, meta: Tensors) -> Tensor | None:
        if (kernels := meta.get("kernels")) is None:
            return None
        strength = (2 * (meta["strength"] + weights["strength"])).exp()
        return (strength.unsqueeze(1) @ kernels.flatten(2)).unflatten(-1, kernels.shape[-2:]).squeeze(1)

    def logit_scale(self, meta: Tensors) -> Tensor | None:
        return self.rule.logit_scale(meta)

    def step_sizes(self, meta: Tensors) -> tuple[Tensors, Tensor]:
        sizes = meta["log_lr"].exp()
        return {"strength": sizes}, sizes.mean(1, keepdim=True)

    def identity(self, meta: Tensors) -> Tensors:
        """Every level as it is, and no step away from there."""
        blocks = len(self.rule.blocks)
        strength = torch.zeros_like(meta["strength"])
        strength[:, blocks:] = NEVER
        plain = {k: v[:, blocks:].repeat(1, 2, 1, 1) for k, v in meta.items() if k == "kernels"}
        stays = {"strength": strength, "log_lr": torch.full_like(meta["log_lr"], NEVER)}
        return self.rule.identity(meta) | plain | stays

    def candidates(self, meta: Tensors) -> dict[str, Tensors]:
        """Every level as it is; the start of the loop; steps a tenth as long; and the loop as it is."""
        start = meta | {"log_lr": torch.full_like(meta["log_lr"], NEVER)}
        short = meta | {"log_lr": meta["log_lr"] - SHORT}
        return {"plain": self.identity(meta), "start": start, "short steps": short, "generator": meta}
