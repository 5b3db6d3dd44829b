"""The meta-learner: a frozen backbone, a generator and a head, to meta-train, to adapt and to predict with."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Episode, Examples
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.adapting import KERNELS, Adaptation, InnerLoop
from mtl.fewshot.generators import AbstractGenerator, SupportView, make_generator
from mtl.fewshot.heads import AbstractHead, CentredRidge, Cosine
from mtl.fewshot.living import Support, read_support
from mtl.fewshot.many import ManyAdapted, adapt_to_many
from mtl.fewshot.model import QueryLoss, TaskModel, check_part, with_step_sizes
from mtl.fewshot.raw_items import ITEMS_PER_PASS, labelled
from mtl.metagrad import tensors
from mtl.metagrad.estimators import AbstractEstimator, MetaGradient, Windowed
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.problem import InnerProblem, without_overflow
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone, Prepared


@dataclass(frozen=True)
class MetaStep:
    """What :meth:`MetaLearner.meta_step` found on a batch of tasks.

    Args:
        losses: ``(tasks,)`` outer losses after adaptation.
        accuracy: ``(tasks,)`` accuracies on the queries, in ``0 .. 1``.
        finite: whether all losses and gradients were; where not, nothing was added to ``.grad``.
        pulls: second-derivative products that the estimator evaluated.
        diagnostics: see :class:`mtl.metagrad.MetaGradient`.
    """

    losses: Tensor
    accuracy: Tensor
    finite: bool
    pulls: int
    diagnostics: dict[str, Tensor]


class MetaLearner:
    """Everything that is needed to meta-train on tasks and to adapt to a new one.

    The fast weights of a task are the generator's (scale and shift of every site and of the pooled features, or a task
    code) and the head's, whose names begin with ``head.``.

    Args:
        backbone: frozen, see :func:`mtl.load_backbone`.
        generator: made for this backbone, see :func:`mtl.fewshot.make_generator`; :class:`mtl.ChannelWise` by default.
        head: turns features into logits; by default :class:`mtl.CentredRidge` on a readout (several levels, or nothing
            modulated inside the network) and :class:`mtl.Cosine` on one level of a modulated network.
        inner_steps: K >= 0; 0 is amortised adaptation, one forward pass and no gradient. By default those of the
            generator, or 0 where nothing is modulated inside the network, else 5.
        optimizer: of the inner loop, by default the generator's, most often plain gradient descent: a dataclass whose
            field ``lr`` may be a function of ``meta``. It is replaced by the learned step sizes.
        estimator: of the meta-gradient; not used after training.
        lite_examples: how many support examples of a task gradients flow through, drawn anew for every task and inner
            step, for support sets that are too large otherwise. None: all.

    Raises:
        ValueError: when the generator was made for another backbone, the optimiser has no field ``lr``, gradients
            would flow through no example, or the number of inner steps is negative.
    """

    def __init__(
        self,
        backbone: Backbone,
        generator: AbstractGenerator | None = None,
        head: AbstractHead | None = None,
        *,
        inner_steps: int | None = None,
        optimizer: AbstractInnerOptimizer | None = None,
        estimator: AbstractEstimator | None = None,
        lite_examples: int | None = None,
    ) -> None:
        if lite_examples is not None and lite_examples < 1:
            raise ValueError(f"MetaLearner(lite_examples={lite_examples}): expected at least one, or None for all")
        if inner_steps is not None and (inner_steps < 0 or inner_steps != int(inner_steps)):
            raise ValueError(f"MetaLearner(inner_steps={inner_steps}): expected 0 (no inner loop) or more whole steps")
        check_part("generator", generator, AbstractGenerator, "make_generator('channelwise', backbone)")
        check_part("head", head, AbstractHead, "Cosine()")
        check_part("optimizer", optimizer, AbstractInnerOptimizer, "InnerSGD()")
        check_part("estimator", estimator, AbstractEstimator, "Windowed()")
        readout = len(backbone.levels) > 1 or not backbone.sites
        generator = make_generator("channelwise", backbone) if generator is None else generator
        self.model = TaskModel(backbone, generator, head or (CentredRidge() if readout else Cosine()))
        self.backbone, self.generator, self.head = backbone, generator, self.model.head
        own = generator.inner_steps if generator.inner_steps is not None else 5 if backbone.sites else 0
        self.inner_steps = own if inner_steps is None else inner_steps
        self.optimizer = with_step_sizes(optimizer or generator.optimizer(), self.model.step_sizes)
        self.estimator = estimator or Windowed()
        self.lite_examples = lite_examples
        self._last: Adapted | None = None
        self._here = _Here()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_here"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._here = _Here()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device | str) -> MetaLearner:
        """Move backbone and generator; returns itself."""
        self.backbone.to(device)
        self.generator.to(device)
        return self

    # --- meta-training -----------------------------------------------------------------------------------------------

    def meta_step(self, episode: Episode, *, weight: float = 1.0) -> MetaStep:
        """The outer step of a batch of equal-shaped episodes, up to the step of the outer optimiser.

        Adds ``weight`` times the gradient of the mean outer loss over the tasks to the ``.grad`` of the generator's
        parameters, unless anything is non-finite. A float16 network that overflows is tried again at lower loss scales;
        one that helps is kept. Waits for the device once, to learn whether all is finite.

        >>> step = learner.meta_step(tasks.sample(0))  # doctest: +SKIP
        >>> outer_optimizer.step()  # doctest: +SKIP
        """
        with torch.inference_mode(False), torch.enable_grad():  # it is all about gradients, wherever it is called
            return self._meta_step(episode.to(self.device).map(tensors.usable), weight)

    def _meta_step(self, episode: Episode, weight: float) -> MetaStep:
        prepared = self.backbone.prepare(episode.support.inputs)
        meta = self.generator.for_training(self.view(episode.support, prepared, episode.ways))
        problem = self.problem(episode, prepared)
        estimate = lambda problem: self.estimator(problem, tensors.detach(meta))  # noqa: E731
        with KERNELS:
            found, problem, finite = without_overflow(problem, estimate, lambda g: [g.losses, *g.grads.values()])
        if finite:
            if (scale := problem.execution.loss_scale) is not None:
                self.backbone.configure(loss_scale=scale)  # the next step starts at the one that did not overflow
            emitted = {k: v for k, v in meta.items() if v.requires_grad}
            grads = [(found.grads[k] * weight).to(v.dtype) for k, v in emitted.items()]
            torch.autograd.backward(list(emitted.values()), grads)
        assert isinstance(problem.outer_loss, QueryLoss)
        return MetaStep(found.losses, problem.outer_loss.accuracy, finite, found.pulls, found.diagnostics)

    def view(self, support: Examples, prepared: Prepared | None = None, ways: int | None = None) -> SupportView:
        """The support set as the generator sees it: one plain forward pass, without a graph.

        Args:
            prepared: the support inputs from :meth:`Backbone.prepare`, where they are used for other passes too.
            ways: number of classes; by default counted, which waits for the device.
        """
        return self.model.view(support, prepared, ways)

    def problem(self, episode: Episode, prepared: Prepared | None = None) -> InnerProblem:
        """The inner problem of a batch of equal-shaped episodes.

        Args:
            prepared: see :meth:`view`.
        """
        return self._loop().problem(episode, prepared)

    def meta_gradient(self, episode: Episode, meta: Tensors) -> MetaGradient:
        """The estimator's gradient on a batch of episodes, with respect to the ``meta`` that the generator emitted."""
        return self.estimator(self.problem(episode), meta)

    # --- adaptation --------------------------------------------------------------------------------------------------

    def adapt(
        self,
        support: Any,
        *,
        steps: int | None = None,
        meta: Tensors | None = None,
        cross_validate: bool = False,
        calibrate: bool = False,
    ) -> Adapted:
        """Adapt to one task, or to a batch of tasks at once.

        Args:
            support: labelled tensors with a task axis, as :class:`~mtl.Examples`; or for one task
                ``{class name: items}`` (see :func:`mtl.items.as_items`), a folder with one sub-folder per class, or a
                collection, or examples of a file (see :func:`mtl.load_examples`). All tasks of a batch have the same
                number of classes; how many examples a class has may differ.
            steps: inner steps, by default those of training.
            meta: start from this instead of what the generator emits for the support set, as the controls do.
            cross_validate: leave out one example per class in turn, and mix the generator's answer with plainer ones as
                far as they are right about what was left out; see :attr:`Adapted.choice`. With one example of a class
                there is nothing to leave out, and the others count a little beside the generator.
            calibrate: find a temperature for the probabilities, and what ``predict(reject=...)`` needs, on left-out
                examples; see :class:`mtl.fewshot.Calibration`. The most likely classes stay the same. Cross-validation
                does so too, at no further cost.

        Raises:
            ValueError: fewer than two classes, or a class without examples; ``meta`` together with ``cross_validate``
                or ``calibrate``.
        """
        if meta is not None and cross_validate:
            raise ValueError("adapt(meta=..., cross_validate=True): meta is one start, and several are to be compared")
        if meta is not None and calibrate:
            raise ValueError(
                "adapt(meta=..., calibrate=True): left-out examples need a start of their own in each fold"
            )
        adaptation = self.adaptation(steps, cross_validate, calibrate)
        with torch.inference_mode(False), torch.no_grad():  # the inner loop needs gradients
            given = Support((), support) if isinstance(support, Examples) else read_support(self.backbone, support)
            adapted = adaptation(given) if meta is None else adaptation.from_meta(given, meta)
        self._last = self._here.last = adapted
        return adapted

    def adapt_many(
        self,
        tasks: Any,
        *,
        steps: int | None = None,
        cross_validate: bool = False,
        calibrate: bool = False,
        batch_size: int = ITEMS_PER_PASS,
        progress: bool = True,
    ) -> ManyAdapted:
        """Adapt to many tasks from items as people have them, in one call; each is as if it were alone.

        >>> many = learner.adapt_many({"lids": {"scratch": some, "dent": others}, "doors": "doors/"})  # doctest: +SKIP
        >>> many["lids"].predict(new), many.failures  # doctest: +SKIP

        Items pass through the network in full batches, and an item that tasks share passes once. Tasks of equal numbers
        of classes and examples are adapted to together.

        Args:
            tasks: labelled items by task name, each as :meth:`adapt` takes them; or a folder with a sub-folder per
                task, of one sub-folder per class each.
            steps, cross_validate, calibrate: see :meth:`adapt`.
            batch_size: items that are read and pass through the network at a time.
            progress: show a bar, if it takes longer than a moment.

        Returns:
            Adapted tasks by name. One that cannot be adapted to, because it has a single class or an item cannot be
            read, does not stop the others: it is named in a warning, and in ``failures`` with the reason.

        Raises:
            ValueError: there is no task, or none could be adapted to.
        """
        adaptation = self.adaptation(steps, cross_validate, calibrate)
        with torch.inference_mode(False), torch.no_grad():
            return adapt_to_many(adaptation, tasks, batch_size, progress)

    def adaptation(self, steps: int | None = None, cross_validate: bool = False, calibrate: bool = False) -> Adaptation:
        """How :meth:`adapt` adapts: a function of examples, which shares no memory of the last task."""
        return Adaptation(self._loop(steps), cross_validate, calibrate)

    def _loop(self, steps: int | None = None) -> InnerLoop:
        return InnerLoop(self.model, self.inner_steps if steps is None else steps, self.optimizer, self.lite_examples)

    def predict(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Any:
        """Predictions of the task last adapted to, see :meth:`Adapted.predict`.

        That is the last of this thread; of any, where this one has adapted to none. Where there are several tasks, keep
        what :meth:`adapt` returns.
        """
        last = self._here.last or self._last
        if last is None:
            raise ValueError("nothing to predict with: call adapt(support) first")
        return last.predict(inputs, batch_size=batch_size, progress=progress)

    def labelled(self, support: Any) -> Examples:
        """Images or texts by class as the examples of one task; classes are numbered in order. See :meth:`adapt`."""
        return labelled(self.backbone, support)[1]


class _Here(threading.local):
    """The task that a thread last adapted to."""

    last: Adapted | None = None
