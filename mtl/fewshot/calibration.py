"""How sure an answer is: a temperature per task, and what is too unsure to be an answer.

Both come from examples that were left out of the support set while the rest was adapted to, so that no query is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

PRIOR = (
    5.0  # how strongly few left-out examples are drawn towards a temperature of 1, in nats; see docs/probabilities.md
)
COLDEST, HOTTEST = 0.05, 20.0  # temperatures lie between them
HALVINGS = 50


class LeftOut(NamedTuple):
    """Answers to the examples that were left out of the support sets of a batch of tasks.

    Args:
        logits: ``(tasks, m, ways)``.
        labels: the right classes, ``(tasks, m)``.
    """

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Calibration:
    """What is known of how sure the answers of one task are.

    Args:
        temperature: logits are divided by it before the softmax; above 1, answers get less sure. Positive.
        confidences: the probability of the most likely class of every left-out example, rising, in ``0 .. 1``; empty
            where a class has a single example, so that nothing could be left out.

    Raises:
        ValueError: a number is out of its range, or the confidences do not rise.
    """

    temperature: float
    confidences: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Calibration(temperature={self.temperature}): expected a positive, finite number")
        if not all(0 <= c <= 1 for c in self.confidences) or list(self.confidences) != sorted(self.confidences):
            raise ValueError("Calibration(confidences=...): expected probabilities from 0 to 1 that rise")

    @property
    def left_out(self) -> int:
        """Number of left-out examples."""
        return len(self.confidences)

    def probabilities(self, logits: Tensor) -> Tensor:
        """``(..., ways) -> (..., ways)``."""
        return (logits / self.temperature).softmax(-1)

    def threshold(self, reject: float) -> float:
        """The probability below which an answer counts as "none of these".

        Of n left-out examples it is the k-th least sure, ``k = floor(reject (n + 1))``. An item of a class of the task
        is then less sure with probability ``k / (n + 1)``, at most ``reject``, if it is like the left-out ones (split
        conformal prediction, arXiv 2107.07511, section 1).

        Args:
            reject: share of the items that do belong to one of the classes that may be rejected, in ``0 .. 1``.

        Raises:
            ValueError: it is out of range, or too small for so few left-out examples.
        """
        if not 0 < reject < 1:
            raise ValueError(f"reject={reject}: expected a share of items, more than 0 and less than 1")
        if not self.confidences:
            way_out = "give two examples or more of every class"
            raise ValueError(
                f"reject={reject}: a class has a single example, so none was left out to judge by; {way_out}"
            )
        # A share such as 0.3 is a little less than it says: 0.3 of 10 is 3 all the same.
        place = math.floor(reject * (self.left_out + 1) + 1e-9)
        if not place:
            way_out = f"expected at least {1 / (self.left_out + 1):.2g}, or more labelled examples"
            raise ValueError(f"reject={reject} with {self.left_out} left-out examples: {way_out}")
        return self.confidences[place - 1]

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` takes."""
        return {"temperature": self.temperature, "confidences": list(self.confidences)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_json` gave; ``ValueError`` for anything else."""
        try:
            return Calibration(float(content["temperature"]), tuple(float(c) for c in content["confidences"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no calibration of a task: {error!r}") from error


def calibrations_of(left_out: LeftOut | None, tasks: int) -> tuple[Calibration, ...]:
    """One calibration per task; at a temperature of 1 where nothing could be left out."""
    if left_out is None:
        return (Calibration(1.0),) * tasks
    logits = _finite(left_out.logits)
    found = temperatures(logits, left_out.labels)
    confidences = (logits / found.view(-1, 1, 1)).softmax(-1).amax(-1).sort(-1).values
    pairs = zip(found.tolist(), confidences.tolist(), strict=True)
    return tuple(Calibration(temperature, tuple(each)) for temperature, each in pairs)


def temperatures(logits: Tensor, labels: Tensor, prior: float = PRIOR) -> Tensor:
    """The temperature of each task, ``(tasks,)`` in float64.

    With ``b = 1 / temperature``, it minimises ``sum of cross-entropies of b logits + prior (b - log b)``, which is
    convex in b. Temperature scaling is that without the prior (arXiv 1706.04599). The prior is least at 1, and
    outweighs few left-out examples.

    Args:
        logits: of examples that were not adapted to, ``(tasks, m, ways)``.
        labels: their classes, ``(tasks, m)``.
        prior: strength of the prior, in nats; more than 0.
    """
    logits = _finite(logits)
    right = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).sum(-1)

    def slope(b: Tensor) -> Tensor:
        expected = ((b.view(-1, 1, 1) * logits).softmax(-1) * logits).sum((-1, -2))
        return expected - right + prior * (1 - 1 / b)

    low = torch.full_like(right, math.log(1 / HOTTEST))
    high = torch.full_like(right, math.log(1 / COLDEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rises = slope(middle.exp()) > 0
        low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
    return (-(low + high) / 2).exp()


def _finite(logits: Tensor) -> Tensor:
    """In float64; an example with a logit that is not finite says nothing, as if all classes were equally likely."""
    logits = logits.detach().double()
    return torch.where(logits.isfinite().all(-1, keepdim=True), logits, 0)
