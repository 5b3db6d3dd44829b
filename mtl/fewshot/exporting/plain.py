"""A task freed from this package, and what the writers of checkpoints make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.exporting.parity import fitted_factors, reference_logits
from mtl.networks.backbones import Backbone
from mtl.networks.merging import Merged

SEPARATELY = "adapted.merge() gives network and classifier separately"


@dataclass(frozen=True)
class Plain:
    """A task without this package: a network on the CPU, and a linear classifier on its pooled features."""

    backbone: Backbone
    model: nn.Module
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Written:
    """What a writer left in the draft folder, and the logits of what the public loader makes of it."""

    load: str
    file: str  # the config file, in the folder
    config: dict[str, Any]  # what is in it, but for "mtl"
    facts: dict[str, Any]  # more for "mtl"
    logits: Callable[[Inputs], Tensor]


def plain_of(adapted: Adapted, task: int) -> Plain:
    """Merge one task, and bring its classifier to the size of the learner's logits."""
    merged, weight, bias = adapted.merge(task)
    backbone = adapted.model.backbone
    _require_whole(backbone, merged)
    weight, bias = weight.cpu().float(), bias.cpu().float()
    inputs = adapted.support.inputs.map(lambda v: v[task])
    found = backbone.features(inputs, merged.model).float() @ weight.T + bias
    # A head that normalises has logits of another size than its plain classifier. One common factor changes no
    # prediction and makes the softmax of the checkpoint mean about what the learner's does.
    factor = fitted_factors(found, reference_logits(adapted, task, inputs)).mean()
    return Plain(backbone, merged.model, weight / factor, bias / factor)


def _require_whole(backbone: Backbone, merged: Merged) -> None:
    if merged.unmerged:
        more = f" and {len(merged.unmerged) - 3} more" if len(merged.unmerged) > 3 else ""
        raise ValueError(
            f"{backbone.name} has no plain checkpoint that predicts the same: {'; '.join(merged.unmerged[:3])}{more}. "
            "Keep predicting with the learner, pickle the network of adapted.merge() whole, or train a generator for "
            "sites that all have a bias"
        )


def some(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
