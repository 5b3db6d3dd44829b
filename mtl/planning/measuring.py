"""Measure a meta-step: peak memory and operations of the real code, on fake tensors or on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from mtl.episode import Episode
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad import tensors
from mtl.metagrad.estimators import MetaGradient
from mtl.metagrad.problem import InnerProblem, inner_gradient
from mtl.metagrad.products import AbstractPull, Known, Products, as_pull
from mtl.metagrad.sweep import outer_adjoint, through_init
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import Trajectory
from mtl.planning.work import Work
from mtl.tools.memory import AbstractWatcher, LiveBytes, stored_bytes


def meta_step(learner: MetaLearner, episode: Episode) -> MetaGradient:
    """``learner.meta_step`` without what reads values, and up to the generator's own backward pass."""
    meta = emit(learner, episode)
    return learner.meta_gradient(episode, tensors.detach(meta))  # the generator's graph stays alive


def emit(learner: MetaLearner, episode: Episode) -> Tensors:
    """The generator's output for the support set."""
    return learner.generator(learner.view(episode.support, ways=episode.ways))


@dataclass(frozen=True)
class Memory:
    """Memory of a meta-step in bytes, without weights and inputs.

    Args:
        peak: most bytes alive at once.
        per_step: least growth per further inner step: its fast weights and its gradient.
    """

    peak: int
    per_step: int


def memory(learner: MetaLearner, episode: Episode) -> Memory:
    """Run the estimator and count. The backbone must know its frozen prefix already, or finding it would count too."""
    with LiveBytes(known=permanent(learner, episode)) as counter:
        result = meta_step(learner, episode)
    return Memory(counter.peak, 2 * stored_bytes(result.weights.values()))


def permanent(learner: MetaLearner, episode: Episode) -> list[Tensor]:
    """Tensors that stay alive throughout: frozen weights, generator, inputs."""
    inputs = [x for e in (episode.support, episode.query) for x in (*e.inputs, e.labels)]
    modules = (learner.backbone, learner.generator)
    return [*inputs, *(v for m in modules for v in (*m.parameters(), *m.buffers()))]


def permanent_bytes(learner: MetaLearner, episode: Episode) -> int:
    """Bytes of these and of the generator's optimiser: gradients and AdamW's two moments."""
    return stored_bytes(permanent(learner, episode)) + 3 * stored_bytes(learner.generator.parameters())


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of the building blocks of an estimator, see :class:`mtl.planning.work.Work`.

    Args:
        start: the generator's view, the initial weights and the backward pass through them, once per meta-step.
        gradient: a gradient of the inner loss.
        outer: a gradient of the outer loss.
        pulls: for each pull, a linearisation at a new anchor, and a product there.
    """

    start: int
    gradient: int
    outer: int
    pulls: dict[str, tuple[int, int]]

    def total(self, work: Work, pull: str) -> float:
        """Operations of a whole meta-step."""
        anchor, product = self.pulls[pull]
        pulled = work.anchors * anchor + (work.anchors + work.products) * product
        return self.start + work.gradients * self.gradient + work.outer * self.outer + pulled


@dataclass(frozen=True)
class InnerStart:
    """Start of an inner loop.

    Args:
        problem: inner problem of the learner and the episode.
        meta: the generator's output.
        weights: initial fast weights.
    """

    problem: InnerProblem
    meta: Tensors
    weights: Tensors


def inner_start(learner: MetaLearner, episode: Episode) -> InnerStart:
    """Compute everything that precedes the first inner step."""
    meta, problem = tensors.detach(emit(learner, episode)), learner.problem(episode)
    with torch.no_grad():
        return InnerStart(problem, meta, problem.init(meta))


def arithmetic(learner: MetaLearner, episode: Episode, start: InnerStart) -> Arithmetic:
    """Count the operations of the building blocks, except the pulls."""
    problem, meta, weights = start.problem, start.meta, start.weights
    with Flops() as gradient:
        inner_gradient(problem, weights, meta, 0)
    with Flops() as outer:
        _, adjoint, _ = outer_adjoint(problem, meta, Trajectory([weights], [learner.optimizer.init(weights)], [], 0))
    with Flops() as once:
        inner_start(learner, episode)
        through_init(problem, meta, adjoint)
    return Arithmetic(once.total, gradient.total, outer.total, {})


class Counted(AbstractPull):
    """A pull that counts its operations.

    Attributes:
        anchor: operations of the last linearisation.
        product: operations of the last product.
    """

    def __init__(self, pull: str) -> None:
        self._pull = as_pull(pull)
        self.anchor = self.product = 0

    def at(
        self, problem: InnerProblem, weights: Tensors, meta: Tensors, step: int, gradient: Known | None = None
    ) -> Products:
        with Flops() as counter:
            evaluate = self._pull.at(problem, weights, meta, step, gradient)
        self.anchor = counter.total

        def products(cotangent: Tensors) -> tuple[Tensors, Tensors]:
            with Flops() as counter:
                found = evaluate(cotangent)
            self.product = counter.total
            return found

        return products


class Flops(AbstractWatcher):
    """Counts the floating-point operations of matrix products, convolutions and attention.

    Uses torch's formulas without ``FlopCounterMode``, which adds hooks to the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def watch(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.total += 2 * _scores(args[0], args[1])
        elif func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.total += 5 * _scores(args[1], args[2])  # recomputed scores and four products for the gradients
        elif (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **kwargs, out_val=result)


def _scores(query: Tensor, key: Tensor) -> int:
    """Operations of the product of queries and keys; torch has no formula for its CPU kernel."""
    return 2 * query.numel() * key.shape[-2]
