"""One adapted task as a plain network and classifier, and how close what was written is to the learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.fewshot.adapted import Adapted
from mtl.networks.backbones import Backbone
from mtl.networks.modulation import Modulation

SEPARATELY = "adapted.merge() gives network and classifier separately"


@dataclass(frozen=True)
class Plain:
    """One task as a plain network on the CPU, and a linear classifier on its pooled features.

    Args:
        backbone: that the task was adapted on.
        model: a copy of its network, with the modulation inside.
        weight: of the classifier, ``(ways, D)``.
        bias: ``(ways,)``.
        modulation: that is inside, ``(1, P)``.
    """

    backbone: Backbone
    model: nn.Module
    weight: Tensor
    bias: Tensor
    modulation: Modulation

    def logits(self, inputs: Inputs, model: nn.Module) -> Tensor:
        """``(n, ways)``, from a copy of the network."""
        return self.backbone.features(inputs, model).float() @ self.weight.T + self.bias


@dataclass(frozen=True)
class Written:
    """A checkpoint in the draft folder.

    Args:
        load: the line of Python that loads it.
        predict: lines of Python that turn items into logits.
        file: name of the config file.
        config: its content, except for the key ``mtl``.
        facts: entries for that key.
        logits: of the network that the public loader builds from the files.
        notes: what a user of such a folder should know.
    """

    load: str
    predict: str
    file: str
    config: dict[str, Any]
    facts: dict[str, Any]
    logits: Callable[[Inputs], Tensor]
    notes: tuple[str, ...] = ()


def to_plain(adapted: Adapted, task: int) -> Plain:
    """Merge one task, and scale its classifier so that its logits have the size of the learner's."""
    backbone = adapted.model.backbone
    if len(backbone.levels) > 1:
        raise ValueError(
            f"{backbone.name} reads {len(backbone.levels)} levels, and a plain checkpoint classifies the last only: "
            "keep predicting with the learner, or load the backbone with levels='last'"
        )
    merged, weight, bias = adapted.merge(task)
    if merged.unmerged:
        raise ValueError(
            f"{backbone.name} has no plain checkpoint that predicts the same: {some(merged.unmerged, '; ')}. "
            "Keep predicting with the learner, pickle the network of adapted.merge() whole, or train a generator for "
            "sites that all have a bias"
        )
    weight, bias = weight.cpu().float(), bias.cpu().float()
    modulation, sites = adapted.modulation, backbone.modulation_width
    inputs = adapted.support.inputs.map(lambda v: v[task])
    found = backbone.features(inputs, merged.model).float() @ weight.T + bias
    # Where the head normalises features, logits of the plain classifier have another size. One common factor changes
    # no prediction and brings the checkpoint's probabilities near the learner's.
    factor = fitted_factors(found, reference_logits(adapted, task, inputs)).mean()
    inside = Modulation(*(v[task : task + 1, :sites].detach().cpu() for v in (modulation.scale, modulation.shift)))
    return Plain(backbone, merged.model, weight / factor, bias / factor, inside)


def some(names: Iterable[str], between: str = ", ") -> str:
    """The first three names, and how many more."""
    names = sorted(names)
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Parity:
    """How close the checkpoint, loaded again, is to the learner.

    Args:
        examples: number of inputs compared.
        agreeing: how many get the same class from both. Ties closer than ``tolerance`` may be decided differently.
        error: largest difference of logits after one positive factor per example, relative to their spread.
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


def check_parity(adapted: Adapted, task: int, inputs: Inputs, logits: Callable[[Inputs], Tensor]) -> Parity:
    """Compare one task on ``inputs``.

    Raises:
        RuntimeError: when the logits differ by more than rounding.
    """
    reference, found = reference_logits(adapted, task, inputs), logits(inputs).float()
    factors = fitted_factors(found, reference)
    # Where classes differ by less than a thousandth of the logits, what remains is float32's own rounding.
    spread = (found.amax(1) - found.amin(1)).max().clamp_min(1e-3 * found.abs().max())
    error = float((found - factors * reference).abs().max() / spread) if bool((factors > 0).all()) else math.inf
    agreeing = int((found.argmax(1) == reference.argmax(1)).sum())
    parity = Parity(len(found), agreeing, error, _tolerance(adapted))
    if not error <= parity.tolerance:
        raise RuntimeError(
            f"the exported checkpoint, loaded again, is not the learner: {parity}. Nothing was written; "
            f"keep predicting with the learner and report {adapted.model.backbone.name}"
        )
    return parity


def reference_logits(adapted: Adapted, task: int, inputs: Inputs) -> Tensor:
    """The learner's logits ``(n, ways)`` of one task, on the CPU."""
    tasks = adapted.support.labels.shape[0]
    repeated = inputs.map(lambda v: v.unsqueeze(0).expand(tasks, *v.shape))
    return adapted.logits(repeated)[task].cpu().float()


def fitted_factors(found: Tensor, reference: Tensor) -> Tensor:
    """The factor per example, ``(n, 1)``, that brings the reference logits nearest to the others."""
    return (found * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)


def _tolerance(adapted: Adapted) -> float:
    """Rounding is 1e-5 to 1e-3 of the logits' spread (TF32: ten times that); losing a modulation changes all of it."""
    return 0.25 if runs_in_half_precision(adapted) else 1e-2 if adapted.model.device.type == "cpu" else 5e-2


def runs_in_half_precision(adapted: Adapted) -> bool:
    """Whether the backbone ran in half precision."""
    return next(adapted.model.backbone.model.parameters()).dtype in (torch.bfloat16, torch.float16)
