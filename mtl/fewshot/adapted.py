"""A batch of adapted tasks: to predict with, to merge into a plain network, to export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs, RawInputs
from mtl.fewshot.model import TaskModel, head_weights
from mtl.metagrad.tensors import Tensors
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation


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
    """

    model: TaskModel
    support: Examples
    ways: int
    weights: Tensors
    meta: Tensors
    class_names: tuple[str, ...] = ()

    @torch.no_grad()
    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``."""
        inputs = Inputs.of(inputs).to(self.model.device)
        support = self.support
        return self.model.query_logits(support.inputs, support.labels, self.ways, inputs, self.weights, self.meta)

    def predict(self, inputs: Inputs | RawInputs | Sequence[Any]) -> Any:
        """The most likely class of each input.

        Integers ``(tasks, n)`` for tensors with a task axis, a list of class names for a list of images or strings.
        """
        if isinstance(inputs, Inputs | Tensor | Mapping):
            return self.logits(inputs).argmax(-1)
        if (tasks := self.support.labels.shape[0]) != 1:
            way_out = "pass tensors (tasks, n, ...) instead, see backbone.preprocess"
            raise ValueError(f"raw items belong to one task, but {tasks} were adapted to; {way_out}")
        one_task = Inputs.of(self.model.backbone.preprocess(inputs)).with_task_axis()
        chosen = self.logits(one_task)[0].argmax(-1).tolist()
        return [self.class_names[i] for i in chosen] if self.class_names else chosen

    @property
    def modulation(self) -> Modulation:
        """Scale and shift of every task, ``(tasks, sites + features)``."""
        return self.model.generator.modulation(self.weights, self.meta)

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
            ValueError: when the head has no linear classifier of the same predictions.
        """
        sites = self.model.backbone.modulation_width
        scale, shift = self.modulation.scale, self.modulation.shift
        merged = merge(self.model.backbone, Modulation(scale[:, :sites], shift[:, :sites]), task)
        features = self.model.features(self.support.inputs, self.weights, self.meta)
        head = self.model.head
        linear = head.as_linear(head_weights(self.weights), (features, self.support.labels), self.ways)
        if linear is None:
            kind = f"a {type(head).__name__} head"
            raise ValueError(f"no linear classifier predicts the same as {kind}; keep predicting with the learner")
        weight, bias = linear
        if (factor := self.model.generator.logit_scale(self.meta)) is not None:
            weight, bias = weight * factor.view(-1, 1, 1), bias * factor.view(-1, 1)
        bias = bias + (weight @ shift[:, sites:].unsqueeze(-1)).squeeze(-1)
        return merged, (weight * scale[:, None, sites:])[task], bias[task]
