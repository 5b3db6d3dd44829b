"""A method is a function of an episode (support with labels, queries without) that returns predicted labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Episode, Examples
from mtl.fewshot.model import most_likely
from mtl.metagrad.tensors import usable
from mtl.tools.comparison import Kind

Predict = Callable[[Episode], Tensor]
"""Takes an episode whose query labels are blanked, returns predicted labels ``(tasks, n_query)``."""


@dataclass(frozen=True)
class Method:
    """A named way to solve an episode.

    Args:
        name: in tables.
        predict: see :data:`Predict`.
        adapted_values: numbers fitted per task, from the number of ways.
        kind: ``"baseline"``, ``"ours"`` or ``"control"``.
        tuned: the setting that it runs at, for tables, such as ``"c=10"``; empty where there is none.
        shared_seconds: seconds so far of feature passes that it would have made, had no other method made them before.
        logits: the same answers as logits ``(tasks, n_query, ways)``; their softmax are its probabilities. None
            where there are none. Use :meth:`of_logits`.
        identity: all that its answers depend on, besides name, kind and ``tuned``: settings, and digests of weights.
            Results of a method without it are not kept by ``evaluate(folder=...)``.
    """

    name: str
    predict: Predict
    adapted_values: Callable[[int], int] = lambda ways: 0
    kind: Kind = "baseline"
    tuned: str = ""
    shared_seconds: Callable[[], float] = lambda: 0.0
    identity: Callable[[], Mapping[str, Any]] | None = None
    logits: Predict | None = None

    @staticmethod
    def of_logits(
        name: str, logits: Predict, adapted_values: Callable[[int], int] = lambda ways: 0, **more: Any
    ) -> Method:
        """A method that gives logits of the queries, ``(tasks, n_query, ways)``, in place of labels.

        Args:
            more: other fields.
        """
        return Method(name, lambda episode: most_likely(logits(episode)), adapted_values, logits=logits, **more)

    def __call__(self, episode: Episode) -> Tensor:
        """Predictions for the queries, whose labels are blanked first: no method sees them, by mistake or otherwise."""
        return self._ask(self.predict, episode)

    def answers(self, episode: Episode) -> tuple[Tensor, Tensor | None]:
        """Predictions for the queries and their probabilities, ``(tasks, n_query)`` each; None for those of a method
        that has none. What is not finite has probability zero."""
        if self.logits is None:
            return self(episode), None
        logits = self._ask(self.logits, episode)
        predicted = most_likely(logits)
        confidence = logits.double().softmax(-1).amax(-1)
        return predicted, torch.where(predicted < 0, 0.0, confidence)

    def _ask(self, solve: Predict, episode: Episode) -> Tensor:
        blank = Examples(episode.query.inputs, torch.zeros_like(episode.query.labels))
        episode = replace(episode, query=blank)
        with torch.inference_mode(False):  # fine-tuning needs gradients, wherever the comparison runs
            return solve(episode.map(usable) if episode.support.labels.is_inference() else episode)


def one_by_one(predict: Predict) -> Predict:
    """A batch of tasks, each on its own; of labels or of logits."""
    return in_chunks(predict, lambda episode: 1)


def in_chunks(predict: Predict, at_once: Callable[[Episode], int]) -> Predict:
    """A batch of tasks, so many at a time as ``at_once`` says of it; of labels or of logits."""

    def solve(episode: Episode) -> Tensor:
        size = at_once(episode)
        if size >= episode.tasks:
            return predict(episode)
        return torch.cat([predict(episode[t : t + size]) for t in range(0, episode.tasks, size)])

    return solve
