"""What callers want to know of logits: the likeliest classes, their probabilities, or that it is none of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from mtl.fewshot.predicting import Prediction, threshold
from mtl.serving.mixed import Answers

T = TypeVar("T")
Finish = Callable[[Answers], Sequence[T]]
"""From the answers of one task to one value for each of its questions."""


def best(reject: float | None) -> Finish[Prediction]:
    """The most likely class; see :meth:`mtl.AdaptedTask.predict` for ``reject``."""
    of_one = likeliest(1, reject)
    return lambda answers: [first for [first] in of_one(answers)]


def likeliest(k: int, reject: float | None = None) -> Finish[list[Prediction]]:
    """The ``k`` most likely classes, the most likely first, whose label is None where it is rejected.

    Raises:
        ValueError: k is less than one.
    """
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1 class")

    def finish(answers: Answers) -> list[list[Prediction]]:
        least = 0.0 if reject is None else threshold(answers.task.calibration, reject)
        return answers.task.likeliest(answers.logits, k, least)

    return finish


def probabilities(answers: Answers) -> Sequence[Tensor]:
    """Of every class, at the temperature of the task."""
    return list(answers.task.probabilities(answers.logits))


def logits(answers: Answers) -> Sequence[Tensor]:
    """Of every class."""
    return list(answers.logits)
