"""A batch of adapted tasks: to predict with, to merge into a plain network, to export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs, RawInputs
from mtl.fewshot.choosing import Choice, mix
from mtl.fewshot.finite import check_answers
from mtl.fewshot.model import TaskModel, head_weights, most_likely
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation

ITEMS_PER_PASS = 64  # of raw images or strings to predict


@dataclass(frozen=True)
class Start:
    """One way of adapting to the tasks.

    Args:
        weights: fast weights after the inner loop, one row per task.
        meta: what the inner loop started from.
    """

    weights: Tensors
    meta: Tensors


@dataclass(frozen=True)
class Adapted:
    """A batch of adapted tasks: the fast weights after the inner loop.

    Args:
        model: backbone, generator and head.
        support: the examples that it adapted to.
        ways: number of classes.
        weights: fast weights, one row per task.
        meta: emitted by the generator.
        class_names: of a single task whose support set was given by class name; empty otherwise.
        choice: how much each candidate counts, after cross-validation; prints as one line.
        starts: the candidates of the choice; without one, the generator's answer alone.
        readout: features of the support set where nothing inside the network is modulated, so that no prediction
            computes them again.
    """

    model: TaskModel
    support: Examples
    ways: int
    weights: Tensors
    meta: Tensors
    class_names: tuple[str, ...] = ()
    choice: Choice | None = None
    starts: tuple[Start, ...] = ()
    readout: Prepared | None = None

    @torch.no_grad()
    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``."""
        inputs, backbone = Inputs.of(inputs).to(self.model.device), self.model.backbone
        # What all candidates have in common is computed once: with nothing modulated, the whole network.
        asked = backbone.prepare(inputs) if len(self._parts) > 1 else inputs
        found = []
        for part, seen in zip(self._parts, self._seen, strict=True):
            features = self.model.features(asked, part.weights, part.meta)
            support = (seen, self.support.labels)
            found.append(self.model.logits(features, support, self.ways, part.weights, part.meta))
        return found[0] if len(found) == 1 else mix(torch.stack(found), self._mixture)

    @cached_property
    def _counted(self) -> list[int]:
        """Candidates that count in some task."""
        return [0] if self.choice is None else (self.choice.weights > 0).any(0).nonzero().flatten().tolist()

    @property
    def _parts(self) -> list[Start]:
        starts = self.starts or (Start(self.weights, self.meta),)
        return [starts[i] for i in self._counted]

    @property
    def _mixture(self) -> Tensor:
        """Weight of every part, ``(tasks, parts)``."""
        one = torch.ones(len(self.support.labels), 1)
        return one if self.choice is None else self.choice.weights[:, self._counted]

    @cached_property
    @torch.no_grad()
    def _seen(self) -> list[Tensor | None]:
        """Features of the support set, part by part, which every prediction reads; None where the head does not."""
        if not self.model.head.needs_support:
            return [None] * len(self._parts)
        prepared = self.readout or self.model.backbone.prepare(self.support.inputs)
        return [self.model.features(prepared, part.weights, part.meta) for part in self._parts]

    def predict(self, inputs: Inputs | RawInputs | Sequence[Any]) -> Any:
        """The most likely class of each input.

        Integers ``(tasks, n)`` for tensors with a task axis, a list of class names for a list of images or strings.

        Raises:
            ValueError: something is not finite: an input, an example of the support set, or what the inner loop made of
                it; or raw items for several tasks.
        """
        if isinstance(inputs, Inputs | Tensor | Mapping):
            return self._classes(Inputs.of(inputs))
        if (tasks := self.support.labels.shape[0]) != 1:
            way_out = "pass tensors (tasks, n, ...) instead, see backbone.preprocess"
            raise ValueError(f"raw items belong to one task, but {tasks} were adapted to; {way_out}")
        chosen = [i for batch in batched(inputs, ITEMS_PER_PASS) for i in self._classes(self._read(batch))[0].tolist()]
        return [self.class_names[i] for i in chosen] if self.class_names else chosen

    def _read(self, items: Sequence[Any]) -> Inputs:
        """Raw items as inputs of the only task."""
        return Inputs.of(self.model.backbone.preprocess(items)).with_task_axis()

    def _classes(self, inputs: Inputs) -> Tensor:
        """``(tasks, n)``."""
        predicted = most_likely(self.logits(inputs))
        return check_answers(predicted, inputs, self.support, self.weights, self.model.backbone)

    @property
    def modulation(self) -> Modulation:
        """Scale and shift of every task that the generator led to, ``(tasks, sites + features)``."""
        return self._modulation(Start(self.weights, self.meta))

    @property
    def adapted_values(self) -> int:
        """How many numbers the inner loop adapts per task."""
        return sum(v[0].numel() for v in self.weights.values())

    @torch.no_grad()
    def merge(self, task: int = 0) -> tuple[Merged, Tensor, Tensor]:
        """One task as a plain network and a plain linear classifier on its pooled features.

        Returns:
            The merged backbone, the classifier's weight ``(ways, width)`` and bias ``(ways,)``. The scale and shift of
            the pooled features are folded into the classifier. Predictions are those of :meth:`predict`, and so are
            logits, up to one positive factor per example.

        Raises:
            ValueError: when no linear classifier predicts the same as the head, on features whose levels are made even,
                or a mixture of candidates is no single network; or the adapted task is not finite.
        """
        if self.model.generator.standard.even:
            raise ValueError("levels of one size are no linear map of features; keep predicting with the learner")
        mixture = self._mixture[task].tolist()
        counted = [(part, seen, w) for part, seen, w in zip(self._parts, self._seen, mixture, strict=True) if w > 0]
        backbone, head = self.model.backbone, self.model.head
        if len(counted) > 1 and (backbone.sites or not head.keeps_logits):
            why = f"{self.choice}: a mixture of {'several networks' if backbone.sites else 'such classifiers'}"
            raise ValueError(f"{why} is no single one; adapt(support, cross_validate=False) to export the generator's")
        linear = [(w, *self._linear(part, seen, task)) for part, seen, w in counted]
        weight = torch.stack([w * weight for w, weight, _ in linear]).sum(0)
        bias = torch.stack([w * bias for w, _, bias in linear]).sum(0)
        if not bool(torch.cat([weight.flatten(), bias.flatten()]).isfinite().all()):
            raise ValueError(f"task {task} is not finite, so there is nothing to export; predict() says what is wrong")
        modulation, sites = self._modulation(counted[0][0]), backbone.modulation_width
        merged = merge(backbone, Modulation(modulation.scale[:, :sites], modulation.shift[:, :sites]), task)
        return merged, weight, bias

    def _modulation(self, part: Start) -> Modulation:
        return self.model.generator.modulation(part.weights, part.meta)

    def _linear(self, part: Start, seen: Tensor | None, task: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of one candidate of one task, on the plain pooled features."""
        head, sites = self.model.head, self.model.backbone.modulation_width
        features = self.model.features(self.support.inputs, part.weights, part.meta) if seen is None else seen
        linear = head.as_linear(head_weights(part.weights), (features, self.support.labels), self.ways)
        if linear is None:
            kind = f"a {type(head).__name__} head"
            raise ValueError(f"no linear classifier predicts the same as {kind}; keep predicting with the learner")
        weight, bias = linear
        if (factor := self.model.generator.logit_scale(part.meta)) is not None:
            weight, bias = weight * factor.view(-1, 1, 1), bias * factor.view(-1, 1)
        modulation = self._modulation(part)
        bias = bias + (weight @ modulation.shift[:, sites:].unsqueeze(-1)).squeeze(-1)
        return (weight * modulation.scale[:, None, sites:])[task], bias[task]


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
