"""How far probabilities can be trusted: calibration error, and accuracy where the least sure answers are left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

BINS = 15  # of equal width over 0 .. 1, the field's convention
COVERAGE = 0.9  # share of the answers that are kept, the surest ones
DIGITS = 4  # of a probability that is stored
RESAMPLES = 400  # of the bootstrap over episodes


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often answers of one probability were right; what a reliability diagram shows.

    Args:
        edges: of the bins of probability, ``(bins + 1,)``.
        count: answers in each bin, ``(bins,)``.
        confidence: their mean probability; NaN in an empty bin.
        accuracy: share of them that is right; likewise.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error in ``0 .. 1``: mean distance of probability and accuracy, over all answers."""
        gaps = np.abs(np.nan_to_num(self.confidence) - np.nan_to_num(self.accuracy))
        return float((gaps * self.count).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Answers:
    """How sure a method was of each answer, and whether it was right, episode by episode.

    Args:
        confidence: the probability of the answer of each query, ``(queries,)`` for every episode; kept to four digits.
        right: whether it was the right class, likewise.

    Raises:
        ValueError: lengths differ, an episode has no query, or a probability is not in ``0 .. 1``.
    """

    confidence: tuple[np.ndarray, ...]
    right: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        confidence = tuple(np.round(np.asarray(c, dtype=np.float64), DIGITS) for c in self.confidence)
        right = tuple(np.asarray(r, dtype=bool) for r in self.right)
        if [c.shape for c in confidence] != [r.shape for r in right] or not all(
            c.size and c.ndim == 1 for c in confidence
        ):
            raise ValueError("answers: expected a probability and a right or wrong for each query of each episode")
        if not all(((c >= 0) & (c <= 1)).all() for c in confidence):
            raise ValueError("answers: expected probabilities from 0 to 1")
        object.__setattr__(self, "confidence", confidence)
        object.__setattr__(self, "right", right)

    def __len__(self) -> int:
        return len(self.confidence)

    @cached_property
    def reliability(self) -> Reliability:
        """Of all answers, in 15 bins of equal width."""
        count, confidence, right = (sums.sum(0) for sums in self._sums)
        with np.errstate(invalid="ignore"):
            means = confidence / count, right / count
        return Reliability(np.linspace(0, 1, BINS + 1), count.astype(int), *means)

    @cached_property
    def ece(self) -> tuple[float, float]:
        """Expected calibration error and the half width of its 95 % interval, by a bootstrap over episodes.

        Few answers make it too large by themselves: hundreds are needed, better thousands.
        """
        counts, confidence, right = self._sums
        gaps, queries = confidence - right, counts.sum(1)
        if len(self) < 2:
            return self.reliability.ece, math.nan
        drawn = np.random.default_rng(0).multinomial(len(self), np.full(len(self), 1 / len(self)), RESAMPLES)
        found = np.abs(drawn @ gaps).sum(1) / (drawn @ queries)
        return self.reliability.ece, float(1.96 * found.std(ddof=1))

    def accuracy_at(self, coverage: float = COVERAGE) -> np.ndarray:
        """Accuracy of the surest answers of each episode, ``(episodes,)``.

        Args:
            coverage: share of the answers that are kept, in ``0 .. 1``; rounded up to a whole one.
        """
        kept = [math.ceil(coverage * len(order) - 1e-9) for order in self._surest_first]
        return np.array([order[:k].mean() for order, k in zip(self._surest_first, kept, strict=True)])

    @property
    def aurc(self) -> np.ndarray:
        """Area under the risk-coverage curve of each episode, ``(episodes,)``: the mean error over all coverages.

        Lower is better (arXiv 1805.08206).
        """
        return np.array([(1 - np.cumsum(order) / np.arange(1, len(order) + 1)).mean() for order in self._surest_first])

    def of_episodes(self, kept: Iterable[int]) -> Answers:
        """Those of some episodes, by number, in this order."""
        kept = list(kept)
        return Answers(tuple(self.confidence[i] for i in kept), tuple(self.right[i] for i in kept))

    @staticmethod
    def joined(parts: Sequence[Answers | None]) -> Answers | None:
        """Those of the episodes of all parts; None where a part has none."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return Answers(*(tuple(v for part in known for v in getattr(part, name)) for name in ("confidence", "right")))

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` takes."""
        right = ["".join(map(str, r.astype(int))) for r in self.right]
        return {"confidence": [c.tolist() for c in self.confidence], "right": right}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Answers:
        """What :meth:`to_json` gave."""
        right = [[mark == "1" for mark in marks] for marks in content["right"]]
        return Answers(tuple(map(np.array, content["confidence"])), tuple(map(np.array, right)))

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each episode and bin: how many answers, the sum of their probabilities, and how many are right."""
        found = np.zeros((3, len(self), BINS))
        for i, (c, r) in enumerate(zip(self.confidence, self.right, strict=True)):
            places = np.minimum((c * BINS).astype(int), BINS - 1)
            for j, values in enumerate((np.ones_like(c), c, r)):
                np.add.at(found[j, i], places, values)
        return found[0], found[1], found[2]

    @cached_property
    def _surest_first(self) -> list[np.ndarray]:
        """Of each episode, which answers are right, the surest first."""
        return [r[np.argsort(-c, kind="stable")] for c, r in zip(self.confidence, self.right, strict=True)]
