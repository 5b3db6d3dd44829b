"""What one method did on the episodes of one setting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from mtl.tools.reliability import Answers, Reliability

Kind = Literal["baseline", "ours", "control"]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on one setting.

    Args:
        method: name in tables and figures.
        kind: ``"baseline"``, ``"ours"`` or ``"control"``.
        accuracy: ``(episodes,)`` in ``0 .. 1``; stored as a read-only float64 copy.
        seconds_per_task: time to adapt to one task and predict its queries.
        adapted_values: number of adapted weights per task.
        tuned: the setting that it ran at, such as ``"c=10"``; empty where there is none.
        answers: how sure it was of each answer; None for a method without probabilities.

    Raises:
        ValueError: naming the method, for NaN, percentages, other shapes, unknown kinds, negative or infinite costs.
    """

    method: str
    kind: Kind
    accuracy: np.ndarray
    seconds_per_task: float
    adapted_values: int
    tuned: str = ""
    answers: Answers | None = None

    def __post_init__(self) -> None:
        accuracy = np.array(self.accuracy, dtype=np.float64)
        accuracy.setflags(write=False)
        object.__setattr__(self, "accuracy", accuracy)
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.method!r}: kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        if accuracy.ndim != 1 or not accuracy.size:
            raise ValueError(f"{self.method!r}: accuracy has shape {accuracy.shape}, expected (episodes,)")
        wrong = accuracy[~((accuracy >= 0) & (accuracy <= 1))]  # NaN compares false, so it is wrong too
        if wrong.size:
            raise ValueError(f"{self.method!r}: {wrong.size} accuracies are not in 0 .. 1, the first is {wrong[0]}")
        if self.answers is not None and len(self.answers) != accuracy.size:
            counts = f"{len(self.answers)} episodes have probabilities, but {accuracy.size} an accuracy"
            raise ValueError(f"{self.method!r}: {counts}")
        for name in ("seconds_per_task", "adapted_values"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{self.method!r}: {name}={getattr(self, name)} must be finite and not negative")

    @property
    def reliability(self) -> Reliability | None:
        """How often answers of one probability were right, for a reliability diagram."""
        return None if self.answers is None else self.answers.reliability

    def only(self, mask: np.ndarray) -> MethodResult:
        """The same on some of the episodes, given by ``(episodes,)`` booleans."""
        answers = None if self.answers is None else self.answers.of_episodes(np.flatnonzero(mask))
        return replace(self, accuracy=self.accuracy[mask], answers=answers)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` takes."""
        content = vars(self) | {"accuracy": self.accuracy.tolist(), "adapted_values": int(self.adapted_values)}
        return content | {"answers": None if self.answers is None else self.answers.to_json()}

    @staticmethod
    def from_json(content: dict[str, Any]) -> MethodResult:
        """What :meth:`to_json` gave, also of a version that knew no probabilities."""
        if not isinstance(content, dict):
            raise TypeError(f"a row is {content!r}, no object")
        found = content.get("answers")
        known: dict[str, Any] = content | {"answers": None if found is None else Answers.from_json(found)}
        return MethodResult(**known)
