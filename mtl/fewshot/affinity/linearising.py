"""What a small common change of scale and shift does to every answer, to first order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.episode import Episode, stack_by_shape
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.model import HEAD
from mtl.metagrad import tensors
from mtl.metagrad.problem import solve
from mtl.metagrad.tensors import Tensors

LOGITS = "log_logit_scale"  # in meta, where the generator learns how sure answers are
SCALE = "scale"


@dataclass(frozen=True)
class Linearised:
    """Answers to examples as linear functions of a change: ``margins + gradients @ change``.

    A margin is the logit of the right class less the log-sum-exp of the others, so that the cross-entropy of an example
    is ``log(1 + exp(-margin))``, the logistic loss, for any number of classes.

    Args:
        margins: ``(n,)`` without a change.
        gradients: ``(n, d)``.
    """

    margins: Tensor
    gradients: Tensor

    @staticmethod
    def cat(parts: Sequence[Linearised]) -> Linearised:
        """The examples of all parts."""
        return Linearised(torch.cat([p.margins for p in parts]), torch.cat([p.gradients for p in parts]))

    def after(self, change: Tensor) -> Tensor:
        """Margins ``(n,)`` after a change ``(d,)``."""
        return self.margins + self.gradients @ change


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """``(tasks, m, ways), (tasks, m) -> (tasks, m)``, see :class:`Linearised`."""
    right = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    others = logits.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    return right - others.logsumexp(-1)


class ChangedBatch:
    """A batch of episodes adapted to by a learner, as a function of a change that all tasks have in common.

    The change adds to every fast weight of the generator, to the logarithm where that is a scale, and to the logarithm
    of the size of the logits. With inner steps it is applied behind them (the first-order gradient of MAML).
    """

    def __init__(self, learner: MetaLearner, episode: Episode) -> None:
        self.model, self.episode = learner.model, episode.to(learner.device)
        support = self.episode.support
        with torch.no_grad():
            self.prepared = learner.backbone.prepare(support.inputs)
            self.meta = tensors.detach(learner.generator(learner.view(support, self.prepared, episode.ways)))
        self.weights = tensors.detach(solve(learner.problem(self.episode, self.prepared), self.meta))

    @property
    def no_change(self) -> Tensors:
        """Zeros in the shape of a change, each with a task axis."""
        own = {k: torch.zeros_like(v) for k, v in self.weights.items() if not k.startswith(HEAD)}
        sure = self.meta[LOGITS].new_zeros(self.episode.tasks) if LOGITS in self.meta else None
        return own if sure is None else own | {LOGITS: sure}

    def margins(self, change: Tensors) -> Tensor:
        """Margins of the queries ``(tasks, m)`` after a change."""
        weights, meta = dict(self.weights), dict(self.meta)
        for name, value in change.items():
            if name == LOGITS:
                meta[name] = meta[name] + value
            else:
                weights[name] = weights[name] * value.exp() if name == SCALE else weights[name] + value
        support, query = self.episode.support, self.episode.query
        ways = self.episode.ways
        logits = self.model.outer_logits(self.prepared, support.labels, ways, query.inputs, weights, meta)
        return margins_of(logits, query.labels)

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every query of each task the margins ``(tasks,)`` and their gradients ``(tasks, size of a change)``."""
        change = tensors.leaf(self.no_change)
        margins = self.margins(change)
        last = margins.shape[1] - 1
        for query in range(last + 1):
            (grads,) = tensors.grad(margins[:, query].sum(), change, retain_graph=query < last)
            yield margins[:, query].detach(), tensors.flat(grads)


def linearise(learner: MetaLearner, episodes: Sequence[Episode], projection: Projection, chunk: int = 8) -> Linearised:
    """Margins and projected gradients of all queries of some episodes, each with a task axis of one.

    Args:
        chunk: most episodes in one forward pass.
    """
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(episodes), chunk):
            for _, batch in stack_by_shape(episodes[start : start + chunk]):
                for margins, gradients in ChangedBatch(learner, batch.map(tensors.usable)).rows():
                    found.append(Linearised(margins.cpu(), projection(gradients).cpu()))
    return Linearised.cat(found)


class Projection:
    """Random directions that keep inner products of gradients, on average: ``P`` of independent ``N(0, 1 / size)``.

    Gradients that are no longer than that stay as they are.

    Args:
        size: directions, at least 1.
        seed: of the directions.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.directions: Tensor | None = None

    def __call__(self, gradients: Tensor) -> Tensor:
        """``(n, width) -> (n, size)``."""
        width = gradients.shape[1]
        if width <= self.size:
            return gradients
        directions = self.directions
        if directions is None:
            generator = torch.Generator().manual_seed(self.seed)
            directions = (torch.randn(width, self.size, generator=generator) / self.size**0.5).to(gradients)
            self.directions = directions
        return gradients @ directions
