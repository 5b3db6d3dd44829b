"""The meta-learner: backbone + generator + head, to meta-train as an inner problem, to adapt and to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Episode, Examples, Inputs, RawInputs
from mtl.fewshot.generators import AbstractGenerator, SupportView
from mtl.fewshot.heads import AbstractHead, Cosine
from mtl.fewshot.lite import carried, lite_carriers
from mtl.metagrad.estimators import AbstractEstimator, MetaGradient, Windowed
from mtl.metagrad.optimizers import InnerAdam, InnerSGD
from mtl.metagrad.problem import InnerProblem, solve
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone, Prepared
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation


class MetaLearner:
    """Everything that is needed to meta-train on tasks and to adapt to a new one.

    The fast weights of a task are the generator's (scale and shift of every site and of the pooled features, or a task
    code) and the head's.

    Args:
        backbone: frozen, see :func:`mtl.load_backbone`.
        generator: made for this backbone's sites and width.
        head: how features become logits.
        inner_steps: K >= 0; 0 is amortised adaptation, one forward pass and no gradient.
        optimizer: of the inner loop, plain gradient descent by default; its ``lr`` is replaced by the generator's
            learned step sizes.
        estimator: of the meta-gradient; plays no part once training is over.
        lite_examples: how many support examples of a task carry gradients, drawn anew for every task and inner
            step; the others are passed without a graph. For support sets that are too large otherwise. None: all.

    Raises:
        ValueError: when the generator was made for another backbone, or no example would carry gradients.
    """

    def __init__(
        self,
        backbone: Backbone,
        generator: AbstractGenerator,
        head: AbstractHead | None = None,
        *,
        inner_steps: int = 5,
        optimizer: InnerSGD | InnerAdam | None = None,
        estimator: AbstractEstimator | None = None,
        lite_examples: int | None = None,
    ) -> None:
        if lite_examples is not None and lite_examples < 1:
            raise ValueError(
                f"MetaLearner(lite_examples={lite_examples}): expected at least one example, or None for all"
            )
        expected = (*(s.width for s in backbone.sites), backbone.width)
        if generator.widths != expected:
            raise ValueError(
                f"the generator was made for sites of widths {_short(generator.widths)}, "
                f"but {backbone.name} has {_short(expected)}; make it with (backbone.sites, backbone.width)"
            )
        self.backbone = backbone
        self.generator = generator
        self.head = head or Cosine()
        self.inner_steps = inner_steps
        self.optimizer = replace(optimizer or InnerSGD(), lr=generator.step_sizes)
        self.estimator = estimator or Windowed()
        self.lite_examples = lite_examples
        self._last: Adapted | None = None

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str) -> MetaLearner:
        """Move backbone and generator; returns itself."""
        self.backbone.to(device)
        self.generator.to(device)
        return self

    # --- meta-training -----------------------------------------------------------------------------------------------

    def view(self, support: Examples, seen: Prepared | None = None) -> SupportView:
        """The support set as the generator sees it: one plain forward pass, no graph.

        Args:
            seen: the support inputs as :meth:`Backbone.prepare` gives them, to compute what it spares once for the view
                and the problem.
        """
        features, activations = self.backbone.observe(seen or support.inputs)
        return SupportView(features, activations, support.labels, int(support.labels.max()) + 1)

    def problem(
        self, episode: Episode, record: dict[str, Tensor] | None = None, seen: Prepared | None = None
    ) -> InnerProblem:
        """The inner problem of a batch of equal-shaped episodes.

        Args:
            record: receives ``accuracy``, ``(tasks,)`` query accuracies, whenever the outer loss is evaluated.
            seen: see :meth:`view`.
        """
        support, query, ways = episode.support, episode.query, episode.ways
        # Every inner step and pull sees the same support set: what lies below the first site is computed once.
        seen = self.backbone.prepare(seen or support.inputs)
        draw = lite_carriers(support, self.lite_examples)

        def init(meta: Tensors) -> Tensors:
            weights = self.generator.init(meta)
            features = self._support_features(seen, weights, meta, draw(0))
            return weights | self.head.init(features, support.labels, ways)

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            features = self._support_features(seen, weights, meta, draw(step))
            logits = self.head.support_logits(weights, (features, support.labels), ways)
            return cross_entropy(logits, support.labels)

        def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
            logits = self._query_logits(seen, support.labels, query.inputs, ways, weights, meta)
            if record is not None:
                record["accuracy"] = (logits.detach().argmax(-1) == query.labels).float().mean(1)
            return cross_entropy(logits, query.labels)

        return InnerProblem(init, inner_loss, outer_loss, self.inner_steps, self.optimizer, self.backbone.execution)

    def _support_features(self, seen: Prepared, weights: Tensors, meta: Tensors, carriers: Tensor | None) -> Tensor:
        """Features of the support set, of which only the carriers pass gradients back; all of them for None."""
        if carriers is None or not torch.is_grad_enabled():
            return self.features(seen, weights, meta)
        return carried(seen, carriers, lambda some: self.features(some, weights, meta))

    def features(self, inputs: Inputs | RawInputs | Prepared, weights: Tensors, meta: Tensors) -> Tensor:
        """Modulated features ``(tasks, n, width)``, in at least float32."""
        modulation = self.generator.modulation(weights, meta)
        sites = self.backbone.modulation_width
        features = self.backbone(inputs, Modulation(modulation.scale[:, :sites], modulation.shift[:, :sites]))
        features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
        return features * modulation.scale[:, None, sites:] + modulation.shift[:, None, sites:]

    def meta_gradient(
        self,
        episode: Episode,
        meta: Tensors,
        record: dict[str, Tensor] | None = None,
        seen: Prepared | None = None,
    ) -> MetaGradient:
        """The estimator's verdict on a batch of episodes; ``meta`` is what the generator emitted for them."""
        return self.estimator(self.problem(episode, record, seen), meta)

    def _query_logits(
        self, support: Inputs | Prepared, labels: Tensor, inputs: Inputs, ways: int, weights: Tensors, meta: Tensors
    ) -> Tensor:
        features = self.features(inputs, weights, meta)
        # A head with weights of its own needs the support set no more; a closed-form head solves for it again.
        own = "head.weight" in weights
        seen = features[:, :0] if own else self.features(support, weights, meta)
        return self.head.logits(features, weights, (seen, labels), ways)

    # --- adaptation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(
        self,
        support: Examples | Mapping[str, Sequence[Any]],
        *,
        steps: int | None = None,
        meta: Tensors | None = None,
    ) -> Adapted:
        """Adapt to one task, or to a batch of tasks at once.

        Args:
            support: labelled tensors with a task axis, or for one task ``{class name: [PIL images, or strings]}``.
                All tasks of a batch have the same number of classes; how many examples a class has may differ.
            steps: inner steps, by default those of training.
            meta: start from this instead of what the generator emits for the support set; the controls do.

        Raises:
            ValueError: fewer than two classes, or a class without examples.
        """
        names: tuple[str, ...] = ()
        if not isinstance(support, Examples):
            names, support = tuple(support), self._labelled(support)
        ways = _ways(support.labels)
        support = support.to(self.device)
        seen = self.backbone.prepare(support.inputs)
        emitted: Tensors = self.generator(self.view(support, seen)) if meta is None else meta
        # Copies: some of it are the generator's own parameters, which may train on.
        emitted = {k: v.detach().clone() for k, v in emitted.items()}
        problem = self.problem(Episode(support, support, ways), seen=seen)
        problem = problem if steps is None else replace(problem, num_steps=steps)
        self._last = Adapted(self, support, ways, self._solve(problem, emitted), emitted, names)
        return self._last

    def _solve(self, problem: InnerProblem, meta: Tensors) -> Tensors:
        """The adapted weights; in float16, with the largest loss scale that does not overflow."""
        weights, before = solve(problem, meta), self.backbone.execution
        while not self.backbone.execution.all_finite(weights.values()) and self.backbone.lower_loss_scale():
            weights = solve(replace(problem, execution=self.backbone.execution), meta)
        self.backbone.execution = before
        return weights

    def predict(self, inputs: Inputs | RawInputs | Sequence[Any]) -> Any:
        """Predictions of the task last adapted to, see :meth:`Adapted.predict`."""
        if self._last is None:
            raise ValueError("nothing to predict with: call adapt(support) first")
        return self._last.predict(inputs)

    def _labelled(self, support: Mapping[str, Sequence[Any]]) -> Examples:
        empty = [name for name, items in support.items() if not len(items)]
        if len(support) < 2 or empty:
            raise ValueError(
                f"a support set needs at least two classes with an example each; got {len(support)} classes"
                + (f", {empty} without any" if empty else "")
            )
        items = [item for group in support.values() for item in group]
        labels = [i for i, group in enumerate(support.values()) for _ in group]
        return Examples(Inputs.of(self.backbone.preprocess(items)).with_task_axis(), torch.tensor([labels]))


@dataclass(frozen=True)
class Adapted:
    """A batch of adapted tasks: the fast weights after the inner loop.

    Args:
        learner: what adapted.
        support: what it adapted to.
        ways: number of classes.
        weights: fast weights, one row per task.
        meta: what the generator emitted.
        class_names: of the one task that was given by names; empty otherwise.
    """

    learner: MetaLearner
    support: Examples
    ways: int
    weights: Tensors
    meta: Tensors
    class_names: tuple[str, ...] = ()

    @torch.no_grad()
    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``."""
        inputs, support = Inputs.of(inputs).to(self.learner.device), self.support
        return self.learner._query_logits(support.inputs, support.labels, inputs, self.ways, self.weights, self.meta)

    def predict(self, inputs: Inputs | RawInputs | Sequence[Any]) -> Any:
        """Most likely class.

        Integers ``(tasks, n)`` for tensors with a task axis, a list of class names for a list of images or strings.
        """
        if isinstance(inputs, Inputs | Tensor | Mapping):
            return self.logits(inputs).argmax(-1)
        if (tasks := self.support.labels.shape[0]) != 1:
            raise ValueError(
                f"raw items belong to one task, but {tasks} were adapted to; pass tensors (tasks, n, ...) instead, "
                "see backbone.preprocess"
            )
        one_task = Inputs.of(self.learner.backbone.preprocess(inputs)).with_task_axis()
        chosen = self.logits(one_task)[0].argmax(-1).tolist()
        return [self.class_names[i] for i in chosen] if self.class_names else chosen

    @property
    def modulation(self) -> Modulation:
        """Scale and shift of every task, ``(tasks, sites + features)``."""
        return self.learner.generator.modulation(self.weights, self.meta)

    @property
    def adapted_values(self) -> int:
        """How many numbers the inner loop adapts per task."""
        return sum(v[0].numel() for v in self.weights.values())

    @torch.no_grad()
    def merge(self, task: int = 0) -> tuple[Merged, Tensor, Tensor]:
        """One task as a plain network and a plain linear classifier on its pooled features.

        Returns:
            The merged backbone, the classifier's weight ``(ways, width)`` and bias ``(ways,)``. The scale and shift of
            the pooled features are folded into the classifier. Predictions are those of :meth:`predict`; logits are, up
            to one positive factor per example.
        """
        sites = self.learner.backbone.modulation_width
        scale, shift = self.modulation.scale, self.modulation.shift
        merged = merge(self.learner.backbone, Modulation(scale[:, :sites], shift[:, :sites]), task)
        features = self.learner.features(self.support.inputs, self.weights, self.meta)
        weight, bias = self.learner.head.as_linear(self.weights, (features, self.support.labels), self.ways)
        bias = bias + (weight @ shift[:, sites:].unsqueeze(-1)).squeeze(-1)
        return merged, (weight * scale[:, None, sites:])[task], bias[task]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over examples, task by task: ``(tasks, n, ways), (tasks, n) -> (tasks,)``."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)


def _ways(labels: Tensor) -> int:
    """Number of classes, the same in every task, each with an example.

    Raises:
        ValueError: fewer than two classes, or a task without an example of one.
    """
    ways = int(labels.max()) + 1 if labels.numel() else 0
    if ways < 2:
        raise ValueError(f"a support set needs at least two classes with an example each; its labels name {ways}")
    absent = (~F.one_hot(labels, ways).any(1)).nonzero().tolist()
    if absent:
        task, label = absent[0]
        raise ValueError(
            f"task {task} has no example of class {label}, though labels go up to {ways - 1}; number the classes of "
            "every task 0, 1, ... without gaps, and adapt tasks with fewer classes apart"
        )
    return ways


def _short(widths: tuple[int, ...]) -> str:
    return f"{list(widths[:4])}{'...' if len(widths) > 4 else ''} ({len(widths)} in all)"
