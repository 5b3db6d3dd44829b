"""Backbone, generator and head as one function of the fast weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Examples, Inputs, RawInputs
from mtl.fewshot.generators import AbstractGenerator, SupportView
from mtl.fewshot.heads import AbstractHead
from mtl.fewshot.lite import lite_features
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone, Prepared
from mtl.networks.modulation import Modulation

HEAD = "head."  # begins the names of the head's fast weights, and of no other


@dataclass(frozen=True)
class TaskModel:
    """The network of a batch of tasks, as pure functions of fast weights and ``meta``.

    The fast weights are the generator's, under its own names, and the head's, under theirs after ``head.``.

    Args:
        backbone: frozen.
        generator: emits ``meta``.
        head: turns features into logits.

    Raises:
        ValueError: when the generator was made for another backbone, or a fast weight of the head has no task axis.
    """

    backbone: Backbone
    generator: AbstractGenerator
    head: AbstractHead

    def __post_init__(self) -> None:
        expected = (*(s.width for s in self.backbone.sites), self.backbone.width)
        if self.generator.widths != expected:
            raise ValueError(
                f"the generator was made for sites of widths {_short(self.generator.widths)}, "
                f"but {self.backbone.name} has {_short(expected)}; make it with (backbone.sites, backbone.width)"
            )
        levels = self.backbone.levels
        if self.generator.reads_levels and len(levels) > 1 and self.generator.levels != levels:
            raise ValueError(
                f"the generator was made for {len(self.generator.levels)} levels of features, but {self.backbone.name} "
                f"has {len(levels)} of its own; make it with mtl.fewshot.make_generator(kind, backbone)"
            )
        for name, shape in self._head_shapes(2).items():
            if shape[:1] != (1,):
                given = f"{type(self.head).__name__}.init gives {name!r} the shape {tuple(shape)}"
                raise ValueError(f"{given} for one task: expected a leading task axis, (1, ...)")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # at once: another thread may be adding what it has found

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def view(self, support: Examples, prepared: Prepared | None = None, ways: int | None = None) -> SupportView:
        """The support set as the generator sees it, see :meth:`MetaLearner.view`."""
        features, activations = self.backbone.observe(prepared or support.inputs)
        return SupportView(features, activations, support.labels, ways or int(support.labels.max()) + 1)

    def initial_weights(
        self, support: Prepared, labels: Tensor, ways: int, meta: Tensors, lite: Tensor | None = None
    ) -> Tensors:
        """Fast weights before the first inner step.

        Args:
            lite: the examples that gradients flow through, see :mod:`mtl.fewshot.lite`; None for all.
        """
        weights = self.generator.init(meta)
        if not self._head_axes:  # nothing of the head to begin with: spare the pass
            return weights
        head = self.head.init(self.features(support, weights, meta, lite), labels, ways)
        return weights | {HEAD + k: v for k, v in head.items()}

    def features(
        self, inputs: Inputs | RawInputs | Prepared, weights: Tensors, meta: Tensors, lite: Tensor | None = None
    ) -> Tensor:
        """Modulated features ``(tasks, n, width)``, in at least float32. For ``lite``, inputs must be prepared."""
        if isinstance(inputs, Prepared) and lite is not None and torch.is_grad_enabled():
            return lite_features(inputs, lite, lambda some: self.features(some, weights, meta))
        modulation, sites = self.generator.modulation(weights, meta), self.backbone.modulation_width
        features = self.backbone(inputs, Modulation(modulation.scale[:, :sites], modulation.shift[:, :sites]))
        features = self.generator.standard.before_scale(at_least_float32(features), meta)
        return features * modulation.scale[:, None, sites:] + modulation.shift[:, None, sites:]

    def support_logits(
        self, support: Prepared, labels: Tensor, ways: int, weights: Tensors, meta: Tensors, lite: Tensor | None = None
    ) -> Tensor:
        """Logits of the support examples for the inner loss, ``(tasks, n, ways)``."""
        if self.head.reads_kernel and (kernel := self.generator.support_kernel(weights, meta)) is not None:
            return self._scaled(self.head.kernel_logits(kernel, labels, ways), meta)
        features = self.features(support, weights, meta, lite)
        return self._scaled(self.head.support_logits(head_weights(weights), (features, labels), ways), meta)

    def query_logits(
        self,
        support: Inputs | Prepared,
        labels: Tensor,
        ways: int,
        inputs: Inputs | Prepared,
        weights: Tensors,
        meta: Tensors,
    ) -> Tensor:
        """Logits of queries ``(tasks, m, ways)``, after adaptation to the support set."""
        features = self.features(inputs, weights, meta)
        seen = self.features(support, weights, meta) if self.head.needs_support else None
        return self.logits(features, (seen, labels), ways, weights, meta)

    def logits(
        self, features: Tensor, support: tuple[Tensor | None, Tensor], ways: int, weights: Tensors, meta: Tensors
    ) -> Tensor:
        """Logits of queries ``(tasks, m, ways)`` from their modulated features ``(tasks, m, width)``.

        Args:
            support: modulated features and labels of the support set; no features where the head does not need them.
        """
        seen = features[:, :0] if support[0] is None else support[0]
        return self._scaled(self.head.logits(features, head_weights(weights), (seen, support[1]), ways), meta)

    def outer_logits(
        self, support: Prepared, labels: Tensor, ways: int, inputs: Inputs, weights: Tensors, meta: Tensors
    ) -> Tensor:
        """The same as :meth:`query_logits` but for rounding, in half the time where queries are a readout.

        What is frozen of their features is multiplied by the classifier with scale and shift folded into it, so that
        neither way is there anything of the size of the queries' features.
        """
        head, standard = self.head, self.generator.standard
        if self.backbone.sites or not (standard.even and head.keeps_logits):
            return self.query_logits(support, labels, ways, inputs, weights, meta)
        modulation = self.generator.modulation(weights, meta)
        asked = standard.before_scale(at_least_float32(self.backbone(inputs)), meta)
        seen = self.features(support, weights, meta) if head.needs_support else asked[:, :0]
        classifier = head.as_linear(head_weights(weights), (seen, labels), ways)
        assert classifier is not None  # it keeps the logits
        weight, bias = classifier
        # Classes first: a wide matrix times the transpose of another is twice as fast as the reverse.
        of_asked = (weight * modulation.scale.unsqueeze(1)) @ asked.mT
        of_shift = weight @ modulation.shift.unsqueeze(-1)
        return self._scaled((of_asked + of_shift + bias.unsqueeze(-1)).mT, meta)

    def _scaled(self, logits: Tensor, meta: Tensors) -> Tensor:
        factor = self.generator.logit_scale(meta)
        return logits if factor is None else logits * factor.view(-1, 1, 1)

    def step_sizes(self, meta: Tensors) -> Tensors:
        """A step size for every fast weight, broadcastable to it; all of the head's share one."""
        sizes, shared = self.generator.step_sizes(meta)
        return sizes | {HEAD + k: shared.view(-1, *[1] * (axes - 1)) for k, axes in self._head_axes.items()}

    def adapted_values(self, ways: int) -> int:
        """Numbers that the inner loop adapts per task."""
        return self.generator.adapted_values + sum(shape.numel() for shape in self._head_shapes(ways).values())

    @cached_property
    def _head_axes(self) -> dict[str, int]:
        return {k: len(shape) for k, shape in self._head_shapes(2).items()}

    @torch.no_grad()
    def _head_shapes(self, ways: int) -> dict[str, torch.Size]:
        """Names and shapes of the head's fast weights for one task, found by giving it features of zero."""
        features, labels = torch.zeros(1, ways, self.backbone.width), torch.arange(ways)[None]
        return {k: v.shape for k, v in self.head.init(features, labels, ways).items()}


def with_step_sizes(
    optimizer: AbstractInnerOptimizer, step_sizes: Callable[[Tensors], Tensors]
) -> AbstractInnerOptimizer:
    """The inner optimiser with learned step sizes in place of its own.

    Raises:
        ValueError: it is no dataclass with a field ``lr``.
    """
    if not is_dataclass(optimizer) or "lr" not in {f.name for f in fields(optimizer)}:
        raise ValueError(
            f"{type(optimizer).__name__} cannot be the inner optimiser of a MetaLearner: expected a dataclass with a "
            "field lr, which is replaced by a function from meta to the learned step size of every fast weight"
        )
    return replace(optimizer, lr=step_sizes)  # pyright: ignore[reportCallIssue]


def head_weights(weights: Tensors) -> Tensors:
    """The head's fast weights, under the names that the head knows."""
    return {k.removeprefix(HEAD): v for k, v in weights.items() if k.startswith(HEAD)}


def most_likely(logits: Tensor) -> Tensor:
    """The class of the largest logit, ``(..., ways) -> (...)``; -1, which is no class, where one is not finite."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)


def at_least_float32(features: Tensor) -> Tensor:
    """Neither NumPy nor the small differences of a head's logits go well with half precision."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over examples, task by task: ``(tasks, n, ways), (tasks, n) -> (tasks,)``."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)


class QueryLoss:
    """The outer loss ``(tasks,)``: cross-entropy of the queries. Keeps the accuracies of its last evaluation.

    Args:
        logits: of the queries, ``(tasks, m, ways)``, from fast weights and ``meta``.
        labels: of the queries, ``(tasks, m)``.
    """

    def __init__(self, logits: Callable[[Tensors, Tensors], Tensor], labels: Tensor) -> None:
        self.logits, self.labels = logits, labels
        self.accuracy = torch.full(labels.shape[:1], torch.nan)

    def __call__(self, weights: Tensors, meta: Tensors) -> Tensor:
        logits = self.logits(weights, meta)
        self.accuracy = (most_likely(logits.detach()) == self.labels).float().mean(1)
        return cross_entropy(logits, self.labels)


def _short(widths: tuple[int, ...]) -> str:
    return f"{list(widths[:4])}{'...' if len(widths) > 4 else ''} ({len(widths)} in all)"


def check_part(name: str, part: object, kind: type, example: str) -> None:
    """Refuse a class, a name or a function, before something deep inside does."""
    if part is not None and not isinstance(part, kind):
        raise ValueError(
            f"MetaLearner({name}={part!r}): expected an instance of {kind.__name__}, such as {example}; a part of your "
            "own derives from it"
        )
