"""A method is a function of an episode (support with labels, queries without) that returns predicted labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Episode, Examples
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

    def __call__(self, episode: Episode) -> Tensor:
        """Predictions for the queries, whose labels are blanked first: no method sees them, by mistake or otherwise."""
        blank = Examples(episode.query.inputs, torch.zeros_like(episode.query.labels))
        episode = replace(episode, query=blank)
        with torch.inference_mode(False):  # fine-tuning needs gradients, wherever the comparison runs
            return self.predict(episode.map(usable) if episode.support.labels.is_inference() else episode)


def one_by_one(predict: Predict) -> Predict:
    """A batch of tasks, each on its own."""
    return lambda episode: torch.cat([predict(episode[t : t + 1]) for t in range(episode.tasks)])
