"""How a learner adapts to labelled examples: a function of them, which an adapted task keeps to adapt again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from mtl.episode import Episode, Examples
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.calibration import calibrations_of
from mtl.fewshot.choosing import by_head_start, by_left_out, candidates, folds, leave_out, mix
from mtl.fewshot.lite import lite_examples as draw_lite_examples
from mtl.fewshot.living import Recipe, Support, kept
from mtl.fewshot.mixture import Start
from mtl.fewshot.model import QueryLoss, TaskModel, cross_entropy
from mtl.fewshot.raw_items import count_ways
from mtl.metagrad import tensors
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.problem import InnerProblem, solve, without_overflow
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared
from mtl.networks.modulation import CopyableLock

# PyTorch chooses the kernel of attention for the whole process, and second derivatives need a certain one: a training
# step of another thread must not change it between a forward pass and its recomputation.
KERNELS = CopyableLock()


@dataclass(frozen=True, eq=False)
class InnerLoop:
    """The inner loop on tasks.

    Args:
        model: backbone, generator and head.
        steps: K >= 0.
        optimizer: takes a step, of sizes that the generator emits.
        lite_examples: how many support examples of a task gradients flow through; None: all.
    """

    model: TaskModel
    steps: int
    optimizer: AbstractInnerOptimizer
    lite_examples: int | None = None

    def problem(self, episode: Episode, prepared: Prepared | None = None) -> InnerProblem:
        """The inner problem of a batch of equal-shaped episodes, see :meth:`MetaLearner.problem`."""
        labels, ways, model = episode.support.labels, episode.ways, self.model
        # Every inner step and pull reads the same support set, so what lies below the first site is computed once.
        support = model.backbone.prepare(prepared or episode.support.inputs)
        lite = draw_lite_examples(episode.support, self.lite_examples)

        def init(meta: Tensors) -> Tensors:
            return model.initial_weights(support, labels, ways, meta, lite(0))

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            return cross_entropy(model.support_logits(support, labels, ways, weights, meta, lite(step)), labels)

        def query_logits(weights: Tensors, meta: Tensors) -> Tensor:
            return model.outer_logits(support, labels, ways, episode.query.inputs, weights, meta)

        outer_loss = QueryLoss(query_logits, episode.query.labels)
        return InnerProblem(init, inner_loss, outer_loss, self.steps, self.optimizer, model.backbone.execution)

    def solve(self, prepared: Prepared, labels: Tensor, ways: int, meta: Tensors) -> Tensors:
        """Fast weights after the loop, one row per task."""
        support, options = Examples(prepared.inputs, labels), self.model.backbone.options
        problem = self.problem(Episode(support, support, ways), prepared)
        recomputes = options.checkpoint_blocks or options.examples_per_chunk is not None
        with KERNELS if recomputes else nullcontext():
            weights, *_ = without_overflow(problem, lambda p: solve(p, meta), lambda weights: weights.values())
        return weights


@dataclass(frozen=True, eq=False)
class Adaptation:
    """How to adapt to labelled examples; called with them, it does.

    Args:
        loop: the inner loop.
        cross_validate: see :meth:`MetaLearner.adapt`.
        calibrate: likewise.
    """

    loop: InnerLoop
    cross_validate: bool = False
    calibrate: bool = False

    @property
    def leaves_out(self) -> bool:
        """Whether examples are left out, to choose or to calibrate by."""
        return self.cross_validate or self.calibrate

    def __call__(self, given: Support) -> Adapted:
        """Adapt to examples, of which something may be known already; without gradients outside."""
        model, (support, ways, prepared) = self.loop.model, self._ready(given)
        view = model.view(support, prepared, ways)
        if given.background is not None:
            view = replace(view, standard=model.generator.standard.of_support(view.features, given.background))
        split = folds(view.labels, ways) if self.leaves_out else None
        tries = partial(candidates, model.generator, evidence=split is not None) if self.cross_validate else _alone
        tried = tries(_copied(model.generator(view)))
        choice, calibrations = None, ()
        if self.leaves_out:
            left_out = split and leave_out(model, view, prepared, split, tries, self.loop.solve)
            choice = by_left_out(tuple(tried), left_out) if left_out else by_head_start(tuple(tried), len(view.labels))
            mixed = left_out and left_out._replace(logits=mix(left_out.logits, choice.weights))
            calibrations = calibrations_of(mixed, len(view.labels))
        return replace(
            self._from(tried, given, support, ways, prepared),
            choice=choice if self.cross_validate else None,
            recipe=Recipe(self, kept(model.backbone, prepared), given.background),
            calibrations=calibrations,
        )

    def from_meta(self, given: Support, meta: Tensors) -> Adapted:
        """The same from a given start; what comes of it does not know how to adapt again."""
        return self._from(_alone(_copied(meta)), given, *self._ready(given))

    def _ready(self, given: Support) -> tuple[Examples, int, Prepared]:
        """Examples on the device, the number of classes, and what lies below the first site."""
        ways, model = count_ways(given.examples.labels), self.loop.model
        support = given.examples.to(model.device).map(tensors.usable)
        return support, ways, model.backbone.prepare(given.prepared or support.inputs)

    def _from(
        self, tried: dict[str, Tensors], given: Support, support: Examples, ways: int, prepared: Prepared
    ) -> Adapted:
        """The inner loop from every candidate, of which the last is the generator's."""
        model, solve = self.loop.model, self.loop.solve
        starts = tuple(Start(solve(prepared, support.labels, ways, meta), meta) for meta in tried.values())
        readout = None if model.backbone.sites else prepared
        weights, meta = starts[-1].weights, starts[-1].meta
        return Adapted(model, support, ways, weights, meta, given.names, starts=starts, readout=readout)


def _alone(meta: Tensors) -> dict[str, Tensors]:
    """The generator's answer as the only candidate."""
    return {"generator": meta}


def _copied(meta: Tensors) -> Tensors:
    """Some are the generator's own parameters, which may be trained further."""
    return {k: v.detach().clone() for k, v in meta.items()}
