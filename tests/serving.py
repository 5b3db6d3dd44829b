"""Tasks of one learner, served from threads and processes; for the tests and the stress script."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from networks import batch
from torch import Tensor

import mtl

WAYS, SHOTS = 3, 2


def learner_of(backbone: mtl.Backbone) -> mtl.MetaLearner:
    """A learner, always the same one, whose generator is not at its start, where it would change nothing."""
    torch.manual_seed(0)
    learner = mtl.MetaLearner(backbone, inner_steps=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in learner.generator.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return learner


def support_of(learner: mtl.MetaLearner, task: int) -> mtl.Examples:
    """Of a task: the same examples, with labels of its own."""
    inputs, labels = batch(learner.backbone, 1, WAYS * SHOTS), torch.arange(WAYS).repeat(SHOTS)
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(task))
    return mtl.Examples(inputs, labels[order][None])


def adapt(learner: mtl.MetaLearner, task: int) -> mtl.fewshot.Adapted:
    return learner.adapt(support_of(learner, task), steps=2)


def adapted_tasks(learner: mtl.MetaLearner, count: int) -> list[mtl.fewshot.Adapted]:
    """Tasks with different labels."""
    return [adapt(learner, task) for task in range(count)]


def queries_of(learner: mtl.MetaLearner) -> Any:
    return batch(learner.backbone, 1, 4)


def logits_of(task: mtl.fewshot.Adapted, queries: Any) -> Tensor:
    """For other processes, which find a function by its name."""
    return task.logits(queries)


def served(
    tasks: Sequence[mtl.fewshot.Adapted], queries: Any, *, threads: int, rounds: int
) -> list[list[tuple[int, Tensor]]]:
    """What every thread found, with the task that it asked: all tasks in an order of its own, so many times."""

    def serve(thread: int) -> list[tuple[int, Tensor]]:
        order = [i for _ in range(rounds) for i in range(len(tasks))]
        random.Random(thread).shuffle(order)
        return [(i, tasks[i].logits(queries)) for i in order]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(serve, range(threads)))
