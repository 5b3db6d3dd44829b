"""Inner loops that are worth many steps, as inner problems, and the parameters of a loop to be learned."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.metagrad import InnerProblem, solve, tensors
from mtl.metagrad.tensors import Tensors


class AbstractPool(abc.ABC):
    """Tasks to learn from, or to compare on; for each, whether it is of a family that no training task is of."""

    unseen: tuple[bool, ...]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, tasks: Tensor) -> Any:
        """A batch of some of the tasks."""


@dataclass(frozen=True)
class AbstractBatch:
    """Labels of some tasks.

    Args:
        labels: of support and query, ``(tasks, n + m)``.
        support: n.
        ways: number of classes.
    """

    labels: Tensor
    support: int
    ways: int

    def loss(self, logits: Tensor, part: slice) -> Tensor:
        """Cross-entropy of each task, ``(tasks,)``."""
        return losses(logits, self.labels[:, part]).mean(1)

    def accuracy(self, logits: Tensor) -> Tensor:
        """Of the queries, ``(tasks,)``."""
        return (logits.argmax(-1) == self.labels[:, self.support :]).float().mean(1)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def noisy(labels: Tensor, ways: int, noise: float, seed: int) -> Tensor:
    """Labels of which a share is replaced by another class."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(labels.shape, generator=generator) < noise
    other = torch.randint(1, ways, labels.shape, generator=generator)
    return torch.where(wrong, (labels + other) % ways, labels)


B = TypeVar("B", bound=AbstractBatch)


class Loop(abc.ABC, Generic[B]):
    """An inner loop, and what may be learned of it."""

    learnable: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def initial(self, pool: Any, steps: int) -> Tensors:
        """Where all that may be learned starts, by name."""

    @abc.abstractmethod
    def emit(self, learned: Tensors, batch: B) -> Tensors:
        """What the inner problem takes, from what is learned."""

    @abc.abstractmethod
    def problem(self, batch: B, steps: int) -> InnerProblem: ...

    @abc.abstractmethod
    def logits(self, weights: Tensors, meta: Tensors, batch: B) -> Tensor:
        """Of the queries."""


def accuracies(loop: Loop[Any], learned: Tensors, pool: AbstractPool, steps: int, batch_size: int = 8) -> Tensor:
    """Accuracy on every task of a pool."""
    found = []
    for places in torch.arange(len(pool)).split(batch_size):
        batch = pool[places]
        with torch.no_grad():
            meta = tensors.detach(loop.emit(learned, batch))
        weights = solve(loop.problem(batch, steps), meta)
        found.append(batch.accuracy(loop.logits(weights, meta, batch)))
    return torch.cat(found)
