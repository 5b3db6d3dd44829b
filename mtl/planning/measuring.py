"""What a meta-step costs: peak memory and arithmetic of the real code, on fake tensors or on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from mtl.episode import Episode
from mtl.fewshot.generators import SupportView
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad import tensors
from mtl.metagrad.estimators import MetaGradient
from mtl.metagrad.problem import InnerProblem, Trajectory, inner_gradient
from mtl.metagrad.products import AbstractPull
from mtl.metagrad.sweep import outer_adjoint, through_init
from mtl.metagrad.tensors import Tensors
from mtl.planning.work import Work
from mtl.tools.memory import LiveBytes, Watching, stored_bytes


def meta_step(learner: MetaLearner, episode: Episode) -> MetaGradient:
    """What training does for one chunk of tasks, up to the generator's own backward."""
    emitted = emit(learner, episode)
    return learner.meta_gradient(episode, tensors.detach(emitted))  # the generator's graph waits for it


def emit(learner: MetaLearner, episode: Episode) -> Tensors:
    """What the generator makes of the support set; the learner's own view counts classes by the labels' values."""
    features, activations = learner.backbone.observe(episode.support.inputs)
    view = SupportView(features, activations, episode.support.labels, episode.ways)
    return learner.generator(view)


@dataclass(frozen=True)
class Memory:
    """Of a meta-step, in bytes, beyond weights and inputs.

    Args:
        peak: the most that is held at a time.
        per_step: what every further inner step leaves behind at least: its fast weights and its gradient.
    """

    peak: int
    per_step: int


def memory(learner: MetaLearner, episode: Episode) -> Memory:
    """Counted while the estimator runs. The backbone has to know its frozen prefix: finding it would count too."""
    with LiveBytes(known=standing(learner, episode)) as counter:
        found = meta_step(learner, episode)
    return Memory(counter.peak, 2 * stored_bytes(found.weights.values()))


def standing(learner: MetaLearner, episode: Episode) -> list[Tensor]:
    """The tensors that are there all the time: frozen weights, generator, inputs."""
    inputs = [x for e in (episode.support, episode.query) for x in (*e.inputs, e.labels)]
    modules = (learner.backbone, learner.generator)
    return [*inputs, *(v for m in modules for v in (*m.parameters(), *m.buffers()))]


def standing_bytes(learner: MetaLearner, episode: Episode) -> int:
    """Bytes of these, and of what the generator's optimiser adds: gradients, and AdamW's two moments."""
    return stored_bytes(standing(learner, episode)) + 3 * stored_bytes(learner.generator.parameters())


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of the parts that every estimator is made of, see :class:`mtl.planning.work.Work`.

    Args:
        start: what happens once: the generator's view, the initial weights and the way back through them.
        gradient: of the inner loss.
        outer: gradient of the outer loss.
        pulls: for each pull, of linearising at a new anchor, and of one product there.
    """

    start: int
    gradient: int
    outer: int
    pulls: dict[str, tuple[int, int]]

    def of(self, work: Work, pull: str) -> float:
        """Floating-point operations of a meta-step."""
        anchor, product = self.pulls[pull]
        pulled = work.anchors * anchor + (work.anchors + work.products) * product
        return self.start + work.gradients * self.gradient + work.outer * self.outer + pulled


@dataclass(frozen=True)
class Beginning:
    """Where an inner loop starts.

    Args:
        problem: of the learner and the episode.
        meta: what the generator emits.
        weights: the initial fast weights.
    """

    problem: InnerProblem
    meta: Tensors
    weights: Tensors


def beginning(learner: MetaLearner, episode: Episode) -> Beginning:
    """The first things that a meta-step computes."""
    meta, problem = tensors.detach(emit(learner, episode)), learner.problem(episode)
    with torch.no_grad():
        return Beginning(problem, meta, problem.init(meta))


def arithmetic(learner: MetaLearner, episode: Episode, begun: Beginning) -> Arithmetic:
    """Counted part by part with the real code, but for the pulls."""
    problem, meta, weights = begun.problem, begun.meta, begun.weights
    with Flops() as gradient:
        inner_gradient(problem, weights, meta, 0)
    with Flops() as outer:
        _, adjoint = outer_adjoint(problem, meta, Trajectory([weights], [learner.optimizer.init(weights)], [], 0))
    with Flops() as start:
        beginning(learner, episode)
        through_init(problem, meta, adjoint)
    return Arithmetic(start.total, gradient.total, outer.total, {})


def pull_arithmetic(begun: Beginning, pull: AbstractPull) -> tuple[int, int]:
    """Operations of linearising at an anchor, and of one product there."""
    with Flops() as anchor:
        products = pull.at(begun.problem, begun.weights, begun.meta, 0)
    with Flops() as product:
        products(begun.weights)
    return anchor.total, product.total


class Flops(Watching):
    """Counts the floating-point operations of matrix products, convolutions and attention.

    By torch's formulas, but without ``FlopCounterMode`` itself, which hooks into the graph that it watches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def saw(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.total += 2 * _scores(args[0], args[1])
        elif func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.total += 5 * _scores(args[1], args[2])  # the scores once more, and four products for the gradients
        elif (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **kwargs, out_val=found)


def _scores(query: Tensor, key: Tensor) -> int:
    """Operations of one product between queries and keys, which torch has no formula for with its CPU kernel."""
    return 2 * query.numel() * key.shape[-2]
