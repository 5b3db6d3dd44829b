"""How close what was written, and loaded again, is to the adapted task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.adapted_task import AdaptedTask


@dataclass(frozen=True)
class Parity:
    """How close the checkpoint, loaded again, is to the learner.

    Args:
        examples: number of inputs compared.
        agreeing: how many get the same class from both. Ties closer than ``tolerance`` may be decided differently.
        error: largest difference of logits relative to their spread, after one positive factor per example where the
            head normalises features and the checkpoint does not.
        tolerance: largest ``error`` that is accepted; larger where the learner itself runs in low precision.
    """

    examples: int
    agreeing: int
    error: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.agreeing} of {self.examples} predictions agree, logits to {self.error:.1e} of their spread "
            f"(allowed {self.tolerance:.0e})"
        )


def check_parity(task: AdaptedTask, inputs: Inputs, logits: Callable[[Inputs], Tensor], exact: bool) -> Parity:
    """Compare on ``inputs``.

    Args:
        task: that was exported.
        inputs: ``(n, ...)``.
        logits: of what was written.
        exact: they are to be the task's, and not up to a factor per example.

    Raises:
        RuntimeError: when the logits differ by more than rounding.
    """
    reference, found = reference_logits(task, inputs), logits(inputs).float()
    factors = found.new_ones(len(found), 1) if exact else fitted_factors(found, reference)
    # Where classes differ by less than a thousandth of the logits, what remains is float32's own rounding.
    spread = (found.amax(1) - found.amin(1)).max().clamp_min(1e-3 * found.abs().max())
    error = float((found - factors * reference).abs().max() / spread) if bool((factors > 0).all()) else math.inf
    agreeing = int((found.argmax(1) == reference.argmax(1)).sum())
    parity = Parity(len(found), agreeing, error, _tolerance(task))
    if not error <= parity.tolerance:
        raise RuntimeError(
            f"the exported checkpoint, loaded again, is not the learner: {parity}. Nothing was written; "
            f"keep predicting with the learner and report {task.backbone.name}"
        )
    return parity


def reference_logits(task: AdaptedTask, inputs: Inputs) -> Tensor:
    """The task's own logits ``(n, ways)``, on the CPU."""
    return task.logits(inputs).cpu().float()


def fitted_factors(found: Tensor, reference: Tensor) -> Tensor:
    """The factor per example, ``(n, 1)``, that brings the reference logits nearest to the others."""
    return (found * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)


def _tolerance(task: AdaptedTask) -> float:
    """Rounding is 1e-5 to 1e-3 of the logits' spread (TF32: ten times that); losing a modulation changes all of it."""
    return 0.25 if task.backbone.low_precision else 1e-2 if task.backbone.device.type == "cpu" else 5e-2
