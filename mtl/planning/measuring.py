"""Measure a meta-step: peak memory and operations of the real code, on fake tensors or on real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from mtl.episode import Episode
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad import tensors
from mtl.metagrad.estimators import Exact, MetaGradient
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import AbstractPull, Known, Products, as_pull
from mtl.metagrad.tensors import Tensors
from mtl.planning.work import Work
from mtl.tools.memory import AbstractWatcher, LiveBytes, stored_bytes

Mark = Callable[[str], None]
"""Notes where a meta-step is."""


def meta_step(learner: MetaLearner, episode: Episode, mark: Mark | None = None) -> MetaGradient:
    """``learner.meta_step`` without what reads values, and up to the generator's own backward pass.

    Args:
        mark: called before each evaluation of the initial weights and of the losses: ``init``, ``inner``, ``outer``.
    """
    meta = learner.generator(learner.view(episode.support, ways=episode.ways))
    problem = learner.problem(episode)
    if mark is not None:
        problem = replace(
            problem,
            init=_marked(mark, "init", problem.init),
            inner_loss=_marked(mark, "inner", problem.inner_loss),
            outer_loss=_marked(mark, "outer", problem.outer_loss),
        )
    return learner.estimator(problem, tensors.detach(meta))  # the generator's graph stays alive


def _marked(mark: Mark, part: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any) -> Any:
        mark(part)
        return compute(*args)

    return marked


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
class Trace:
    """What a meta-step of one inner step takes.

    Args:
        peak: most bytes alive at once, with what is there throughout.
        per_step: least growth per further inner step, which is linear: its fast weights and its gradient, or its graph.
        operations: floating-point operations before the last evaluation of the initial weights (``init``), of the inner
            and of the outer loss, and in ``all``.
    """

    peak: int
    per_step: int
    operations: dict[str, int]

    def after(self, steps: int) -> int:
        """Peak bytes for as many inner steps."""
        return self.peak + (steps - 1) * self.per_step

    def arithmetic(self, pulls: dict[str, tuple[int, int]]) -> Arithmetic:
        """Of the building blocks, which stand one after the other in :class:`mtl.FirstOrder`'s meta-step."""
        at = self.operations
        start = at["inner"] + at["all"] - at["init"]  # the initial weights are evaluated again for their gradient
        return Arithmetic(start, at["outer"] - at["inner"], at["init"] - at["outer"], pulls)


def trace(learner: MetaLearner, episode: Episode) -> Trace:
    """Run the estimator through its inner steps, one for the parts to be told apart, and count.

    The backbone must know its frozen prefix already, or finding it would count too.
    """
    always, alive, operations = permanent(learner, episode), dict[str, int](), dict[str, int]()
    with LiveBytes(known=always) as counter, Flops() as flops:

        def mark(part: str) -> None:
            alive[part], operations[part] = counter.now, flops.total

        result = meta_step(learner, episode, mark)
        operations["all"] = flops.total
    per_step = 2 * stored_bytes(result.weights.values())
    if isinstance(learner.estimator, Exact):  # the graph of a step stays until the end
        per_step = alive["outer"] - alive["inner"]
    return Trace(permanent_bytes(learner, episode) + counter.peak, per_step, operations)


class Counted(AbstractPull):
    """A pull that counts its operations.

    Args:
        name: of the pull.

    Attributes:
        anchor: operations of the last linearisation.
        product: operations of the last product.
    """

    def __init__(self, name: str) -> None:
        self.name, self._pull = name, as_pull(name)
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
