"""A batch of adapted tasks: to predict with, to merge into a plain network, to export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs, RawInputs
from mtl.fewshot.choosing import Choice, mix
from mtl.fewshot.finite import check_answers
from mtl.fewshot.model import TaskModel, head_weights, most_likely
from mtl.fewshot.raw_items import ITEMS_PER_PASS, batches
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared
from mtl.networks.backbones.prepared_inputs import examples_per_pass, pieces
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation


class Prediction(NamedTuple):
    """The most likely class of an item, by its name or else its number, and its probability."""

    label: Any
    probability: float


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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # at once: another thread may be adding what it has found

    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``, so many examples at a time as memory for a few is enough."""
        inputs = Inputs.of(inputs)
        size = None if self.model.backbone.execution.lockstep else examples_per_pass(inputs)
        found = [self._logits(piece) for piece in pieces(inputs, size)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    @torch.no_grad()
    def _logits(self, inputs: Inputs) -> Tensor:
        inputs, backbone = inputs.to(self.model.device), self.model.backbone
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

    def predict(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Any:
        """The most likely class of each input.

        Args:
            inputs: for one task items of any kind, see :func:`mtl.items.as_items`: images, paths, a folder, strings, a
                generator of a million of them. For several tasks tensors ``(tasks, n, ...)`` as the network takes them.
            batch_size: items that are read and pass through the network at a time.
            progress: show a bar, if items take longer than a moment.

        Returns:
            A list of class names for items, one each, also of a single item; integers where classes have no names.
            Integers ``(tasks, n)`` for tensors with a task axis.

        Raises:
            ValueError: something is not finite: an input, an example of the support set, or what the inner loop made of
                it; items cannot be read; or there are items for several tasks.
        """
        if self._is_tensors(inputs):
            return self._classes(self.logits(inputs), Inputs.of(inputs))
        return [answer.label for answer in self._answers(inputs, batch_size, progress)]

    def predict_each(self, items: Any, *, batch_size: int = ITEMS_PER_PASS) -> Iterator[Prediction]:
        """Predictions one after the other, each with its probability; reads no more than ``batch_size`` items ahead.

        >>> for name, probability in adapted.predict_each(paths): print(name, probability)  # doctest: +SKIP

        Raises:
            ValueError: see :meth:`predict`.
        """
        return self._answers(items, batch_size, progress=False)

    def predict_proba(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Tensor:
        """The probability of every class: ``(n, ways)`` for n items, ``(tasks, n, ways)`` for tensors.

        Args:
            inputs, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        if self._is_tensors(inputs):
            return self._probabilities(inputs)
        found = [self._probabilities(batch)[0].cpu() for batch in self._batches(inputs, batch_size, progress)]
        return torch.cat(found) if found else torch.zeros(0, self.ways)

    def _answers(self, items: Any, batch_size: int, progress: bool) -> Iterator[Prediction]:
        return (answer for batch in self._batches(items, batch_size, progress) for answer in self._answers_to(batch))

    def _answers_to(self, inputs: Inputs) -> Iterator[Prediction]:
        """Of inputs of the only task."""
        logits = self.logits(inputs)
        classes = self._classes(logits, inputs)
        probabilities = logits.softmax(-1).gather(-1, classes.unsqueeze(-1))[0, :, 0]
        for i, probability in zip(classes[0].tolist(), probabilities.tolist(), strict=True):
            yield Prediction(self.class_names[i] if self.class_names else i, probability)

    def _batches(self, items: Any, batch_size: int, progress: bool) -> Iterator[Inputs]:
        """Items as inputs ``(1, n, ...)``."""
        if (tasks := self.support.labels.shape[0]) != 1:
            way_out = "pass tensors (tasks, n, ...) instead, see backbone.preprocess"
            raise ValueError(f"raw items belong to one task, but {tasks} were adapted to; {way_out}")
        return batches(self.model.backbone, items, batch_size, progress)

    def _is_tensors(self, inputs: Any) -> bool:
        """Whether these are inputs of the network rather than items; images have five axes then."""
        if self.model.backbone.adapter.reads != "images" or not isinstance(inputs, Tensor) or inputs.dim() > 4:
            return isinstance(inputs, Inputs | Tensor | Mapping)
        if inputs.dim() == 4 and inputs.is_floating_point() and bool((inputs < 0).any()):
            way_out = "preprocessed images need a task axis, inputs[None], and others go from 0 to 1"
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} with negative values: {way_out}")
        return False

    def _probabilities(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ways)``."""
        logits = self.logits(inputs)
        self._classes(logits, Inputs.of(inputs))
        return logits.softmax(-1)

    def _classes(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """``(tasks, n)``."""
        return check_answers(most_likely(logits), inputs, self.support, self.weights, self.model.backbone)

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
