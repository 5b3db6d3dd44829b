"""The ways of adapting to a batch of tasks that count, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs
from mtl.fewshot.adapted_task import Part
from mtl.fewshot.choosing import mix
from mtl.fewshot.model import TaskModel, head_weights
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared
from mtl.networks.modulation import Modulation


@dataclass(frozen=True)
class Start:
    """One way of adapting to the tasks.

    Args:
        weights: fast weights after the inner loop, one row per task.
        meta: what the inner loop started from.
    """

    weights: Tensors
    meta: Tensors


class Member(NamedTuple):
    """A candidate that counts in a task: what it makes of the support set, where the head reads that, and how much."""

    start: Start
    seen: Tensor | None
    weight: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Candidates of a batch of tasks, and how much each of them counts in each task.

    Args:
        model: backbone, generator and head.
        support: the examples that they were adapted to.
        ways: number of classes.
        starts: candidates that count in some task.
        weights: of every candidate, ``(tasks, candidates)``.
        readout: features of the support set where nothing inside the network is modulated.
    """

    model: TaskModel
    support: Examples
    ways: int
    starts: tuple[Start, ...]
    weights: Tensor
    readout: Prepared | None

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``."""
        inputs, backbone = inputs.to(self.model.device), self.model.backbone
        # What all candidates have in common is computed once: with nothing modulated, the whole network.
        asked = backbone.prepare(inputs) if len(self.starts) > 1 else inputs
        found = []
        for part, seen in zip(self.starts, self._seen, strict=True):
            features = self.model.features(asked, part.weights, part.meta)
            support = (seen, self.support.labels)
            found.append(self.model.logits(features, support, self.ways, part.weights, part.meta))
        return found[0] if len(found) == 1 else mix(torch.stack(found), self.weights)

    def of_task(self, task: int) -> list[Member]:
        """Candidates that count in one task."""
        rows = zip(self.starts, self._seen, self.weights[task].tolist(), strict=True)
        return [Member(*row) for row in rows if row[-1] > 0]

    def linear(self, task: int) -> tuple[Tensor, Tensor]:
        """Weight ``(ways, D)`` and bias ``(ways,)`` of one linear classifier of pooled features; see :meth:`parts`.

        Where a candidate's features are brought to unit length, its rows' logits are those up to a positive factor.
        """
        linear = [self._classifier(member, task).linear() for member in self.of_task(task)]
        weight, bias = (torch.stack(of_members).sum(0) for of_members in zip(*linear, strict=True))
        return weight, bias

    def parts(self, task: int) -> tuple[Part, ...]:
        """One task as linear classifiers, each under a modulation of the network.

        Raises:
            ValueError: no linear classifier has the logits of the head.
        """
        return Part.total([self._part(member, task) for member in self.of_task(task)])

    def modulation(self, start: Start) -> Modulation:
        """Scale and shift of every task, ``(tasks, sites + features)``."""
        return self.model.generator.modulation(start.weights, start.meta)

    @cached_property
    @torch.no_grad()
    def _seen(self) -> list[Tensor | None]:
        """Features of the support set, one by one, which every prediction reads; None where the head does not."""
        if not self.model.head.needs_support:
            return [None] * len(self.starts)
        prepared = self.readout or self.model.backbone.prepare(self.support.inputs)
        return [self.model.features(prepared, part.weights, part.meta) for part in self.starts]

    def _part(self, member: Member, task: int) -> Part:
        head, sites = self.model.head, self.model.backbone.modulation_width
        if not (head.keeps_logits or head.unit_length):
            kind = f"a {type(head).__name__} head, which says neither keeps_logits nor unit_length"
            raise ValueError(
                f"no linear classifier is known to have the logits of {kind}; keep the adapted task itself"
            )
        found = self._classifier(member, task)
        if head.keeps_logits:
            found = Part(*found.linear())
        if not sites:
            return found
        modulation = self.modulation(member.start)
        return replace(found, scale=modulation.scale[task, :sites], shift=modulation.shift[task, :sites])

    def _classifier(self, member: Member, task: int) -> Part:
        """One candidate of one task as a linear classifier of pooled features, which are scaled and shifted before."""
        modulation, sites = self.modulation(member.start), self.model.backbone.modulation_width
        of_features = (v[task, sites:] for v in (modulation.scale, modulation.shift))
        w, b = (v[task] * member.weight for v in self._head_as_linear(member.start, member.seen))
        return Part(w, b, None, None, *of_features, unit=self.model.head.unit_length)

    @torch.no_grad()
    def _head_as_linear(self, start: Start, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias of one candidate of all tasks, on the modulated features that the head sees."""
        head = self.model.head
        features = self.model.features(self.support.inputs, start.weights, start.meta) if seen is None else seen
        linear = head.as_linear(head_weights(start.weights), (features, self.support.labels), self.ways)
        if linear is None:
            kind = f"a {type(head).__name__} head"
            raise ValueError(f"no linear classifier predicts the same as {kind}; keep predicting with the learner")
        weight, bias = linear
        if (factor := self.model.generator.logit_scale(start.meta)) is not None:
            weight, bias = weight * factor.view(-1, 1, 1), bias * factor.view(-1, 1)
        return weight, bias
