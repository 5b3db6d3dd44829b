"""A batch of adapted tasks: to predict with, to merge into a plain network, to export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs, RawInputs
from mtl.fewshot.adapted_task import AdaptedTask, Standard
from mtl.fewshot.calibration import Calibration
from mtl.fewshot.choosing import Choice
from mtl.fewshot.finite import check_answers
from mtl.fewshot.kept_examples import write_examples
from mtl.fewshot.living import AbstractLiving, Recipe, Support
from mtl.fewshot.mixture import Mixture, Start
from mtl.fewshot.model import TaskModel, most_likely
from mtl.fewshot.predicting import AbstractPredictor, threshold
from mtl.fewshot.raw_items import ITEMS_PER_PASS, batches
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone, Prepared
from mtl.networks.backbones.prepared_inputs import examples_per_pass, pieces
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation


@dataclass(frozen=True)
class Adapted(AbstractPredictor, AbstractLiving):
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
        recipe: how to adapt again when examples change; None where it was adapted from a given ``meta``.
        calibrations: of every task, where left-out examples were asked for.
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
    recipe: Recipe | None = None
    calibrations: tuple[Calibration, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # at once: another thread may be adding what it has found

    def __getitem__(self, task: int) -> Adapted:
        """One of the tasks alone, which shares no memory with the others.

        Raises:
            IndexError: there is no such task.
        """
        tasks = len(self.support.labels)
        if not 0 <= task < tasks:
            raise IndexError(f"adapted[{task}]: there are tasks 0 to {tasks - 1}")
        if tasks == 1:
            return self
        row = lambda v: v[task : task + 1].clone()  # noqa: E731

        def alone(start: Start) -> Start:
            meta = self.model.generator.of_task(start.meta, task, tasks)
            return Start({k: row(v) for k, v in start.weights.items()}, meta)

        own = alone(Start(self.weights, self.meta))
        return replace(
            self,
            support=self.support.map(row),
            weights=own.weights,
            meta=own.meta,
            choice=self.choice and self.choice.of_task(task),
            starts=tuple(map(alone, self.starts)),
            readout=self.readout and Prepared(self.readout.inputs.map(row)),
            recipe=self.recipe and self.recipe.of_task(task),
            calibrations=self.calibrations[task : task + 1],
        )

    def _support(self) -> Support:
        if (tasks := len(self.support.labels)) != 1:
            raise ValueError(f"{tasks} tasks were adapted to together; pick one, such as adapted[0]")
        if self.recipe is None:
            raise ValueError("this task was adapted from a given meta; adapt(support) without meta= to change examples")
        inputs = self.readout.inputs if self.readout else self.support.inputs
        examples = Examples(inputs, self.support.labels)
        return Support(self.class_names, examples, self.recipe.prepared, self.recipe.background)

    def _again(self, support: Support) -> Adapted:
        assert self.recipe is not None
        return self.recipe.adapt(support)

    def _backbone(self) -> Backbone:
        return self.model.backbone

    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(tasks, n, ...) -> (tasks, n, ways)``, so many examples at a time as memory for a few is enough."""
        inputs = Inputs.of(inputs)
        size = None if self.model.backbone.execution.lockstep else examples_per_pass(inputs)
        found = [self._mixture.logits(piece) for piece in pieces(inputs, size)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    @cached_property
    def _mixture(self) -> Mixture:
        """The candidates that count."""
        starts = self.starts or (Start(self.weights, self.meta),)
        weights = torch.ones(len(self.support.labels), 1) if self.choice is None else self.choice.weights
        counted: list[int] = (weights > 0).any(0).nonzero().flatten().tolist()
        chosen = tuple(starts[i] for i in counted)
        return Mixture(self.model, self.support, self.ways, chosen, weights[:, counted], self.readout)

    def predict(
        self,
        inputs: Any,
        *,
        reject: float | None = None,
        batch_size: int = ITEMS_PER_PASS,
        progress: bool = True,
    ) -> Any:
        """The most likely class of each input.

        Args:
            inputs: for one task items of any kind, see :func:`mtl.items.as_items`: images, paths, a folder, strings, a
                generator of a million of them. For several tasks tensors ``(tasks, n, ...)`` as the network takes them.
            reject: answer "none of these" where the probability is lower than that of the least sure 10 % of the
                left-out examples, for 0.1: None in a list, -1 in a tensor. About so many, or fewer, of the items that
                do belong to a class are lost by it. See :meth:`mtl.fewshot.Calibration.threshold`.
            batch_size: items that are read and pass through the network at a time.
            progress: show a bar, if items take longer than a moment.

        Returns:
            A list of class names for items, one each, also of a single item; integers where classes have no names.
            Integers ``(tasks, n)`` for tensors with a task axis.

        Raises:
            ValueError: something is not finite: an input, an example of the support set, or what the inner loop made of
                it; items cannot be read; there are items for several tasks; or nothing to take a threshold from.
        """
        if not self._is_tensors(inputs):
            return super().predict(inputs, reject=reject, batch_size=batch_size, progress=progress)
        logits = self.logits(inputs)
        classes = self._classes(logits, Inputs.of(inputs))
        if reject is None:
            return classes
        calibrations = self.calibrations or (None,)
        thresholds = torch.tensor([threshold(c, reject) for c in calibrations], dtype=torch.float64)
        sure = self._tempered(logits).amax(-1) >= thresholds.to(logits).unsqueeze(-1)
        return torch.where(sure, classes, -1)

    def predict_proba(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Tensor:
        """The probability of every class: ``(n, ways)`` for n items, ``(tasks, n, ways)`` for tensors.

        Args:
            inputs, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        if self._is_tensors(inputs):
            return self._probabilities(inputs)
        return super().predict_proba(inputs, batch_size=batch_size, progress=progress)

    def _batches(self, items: Any, batch_size: int, progress: bool) -> Iterator[Inputs]:
        """Items as inputs ``(1, n, ...)``."""
        if (tasks := self.support.labels.shape[0]) != 1:
            way_out = "pass tensors (tasks, n, ...) instead, see backbone.preprocess"
            raise ValueError(f"raw items belong to one task, but {tasks} were adapted to; {way_out}")
        return batches(self.model.backbone, items, batch_size, progress)

    def _finite_logits(self, inputs: Inputs) -> Tensor:
        logits = self.logits(inputs)
        self._classes(logits, inputs)
        return logits[0]

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
        return self._tempered(logits)

    def _tempered(self, logits: Tensor) -> Tensor:
        """Logits ``(tasks, n, ways)`` as probabilities."""
        if not self.calibrations:
            return logits.softmax(-1)
        return torch.stack([c.probabilities(z) for c, z in zip(self.calibrations, logits, strict=True)])

    def calibration(self, task: int = 0) -> Calibration | None:
        """How sure answers of a task are; None where no examples were left out to find out."""
        return self.calibrations[task] if self.calibrations else None

    @property
    def _calibration(self) -> Calibration | None:
        return self.calibration()

    def _classes(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """``(tasks, n)``."""
        return check_answers(most_likely(logits), inputs, self.support, self.weights, self.model.backbone)

    @property
    def modulation(self) -> Modulation:
        """Scale and shift of every task that the generator led to, ``(tasks, sites + features)``."""
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
            ValueError: when no linear classifier predicts the same as the head, on features whose levels are made even,
                or a mixture of candidates is no single network; or the adapted task is not finite.
        """
        if self.model.generator.standard.even:
            raise ValueError("levels of one size are no linear map of features; keep predicting with the learner")
        backbone, head, counted = self.model.backbone, self.model.head, self._mixture.of_task(task)
        if len(counted) > 1 and (backbone.sites or not head.keeps_logits):
            why = f"{self.choice}: a mixture of {'several networks' if backbone.sites else 'such classifiers'}"
            raise ValueError(f"{why} is no single one; adapt(support, cross_validate=False) to export the generator's")
        weight, bias = self._mixture.linear(task)
        if not bool(torch.cat([weight.flatten(), bias.flatten()]).isfinite().all()):
            raise ValueError(f"task {task} is not finite, so there is nothing to export; predict() says what is wrong")
        modulation, sites = self._mixture.modulation(counted[0].start), backbone.modulation_width
        merged = merge(backbone, Modulation(modulation.scale[:, :sites], modulation.shift[:, :sites]), task)
        return merged, weight, bias

    def task(self, task: int = 0) -> AdaptedTask:
        """One task alone, as plain numbers that need neither generator nor support set; to save or to serve.

        Raises:
            ValueError: there is no such task, it is not finite, or no linear classifier has the logits of its head.
        """
        if not 0 <= task < (tasks := len(self.support.labels)):
            raise ValueError(f"task={task}: there are tasks 0 to {tasks - 1}")
        parts = self._mixture.parts(task)
        if not all(bool(v.isfinite().all()) for part in parts for v in part.tensors.values()):
            raise ValueError(f"task {task} is not finite, so there is nothing to keep; predict() says what is wrong")
        generator, backbone = self.model.generator, self.model.backbone
        standard = None
        if generator.standard.even:
            mean, inv_std = generator.standard.moments(self.meta)
            widths = tuple(level.width for level in backbone.levels)
            standard = Standard(mean[task % len(mean)], inv_std[task % len(inv_std)], widths)
        facts = {"mtl": version("mtl"), "generator": type(generator).__name__, "head": type(self.model.head).__name__}
        facts |= {"source_of_generator": generator.source} if generator.source else {}
        facts |= {"examples": self.support.labels.shape[1]} | self._chosen(task)
        return AdaptedTask(backbone, parts, self.ways, self.class_names, standard, facts, self.calibration(task))

    def save(self, path: str | Path, task: int = 0, *, half: bool = False) -> None:
        """Write one task to a file of kilobytes, which :func:`mtl.load_task` reads.

        >>> adapted.save("returns.mtl")  # doctest: +SKIP

        Args:
            path: see :meth:`AdaptedTask.save`, with what it raises.
            task: which of the adapted tasks.
            half: store float16, half the size; logits then differ in the fourth digit.
        """
        self.task(task).save(path, half=half)

    def save_examples(self, path: str | Path) -> None:
        """Write the features of the examples to a file, so that the task can be changed another day.

        >>> adapted.save_examples("lids.examples")  # doctest: +SKIP
        >>> adapted = mtl.adapt(backbone, mtl.load_examples("lids.examples", backbone))  # doctest: +SKIP

        Args:
            path: replaced as a whole, or not at all. Four bytes per feature and example.

        Raises:
            ValueError: layers of the network are modulated, the network cannot be named, or there are several tasks.
            FileExistsError: there is a file that holds no examples.
        """
        write_examples(Path(path), self.model.backbone, self._support())

    def _chosen(self, task: int) -> dict[str, Any]:
        if self.choice is None:
            return {}
        return {"choice": {row.name: round(row.weight, 4) for row in self.choice.rows(task) if row.weight > 0}}
