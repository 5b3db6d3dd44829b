"""One adapted task as a plain network and classifier, and the result of writing it."""

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
    """One task as a plain network on the CPU, and a linear classifier on its pooled features."""

    backbone: Backbone
    model: nn.Module
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Written:
    """A checkpoint in the draft folder.

    Args:
        load: the line of Python that loads it.
        file: name of the config file.
        config: its content, except for the key ``mtl``.
        facts: entries for that key.
        logits: of the network that the public loader builds from the files.
    """

    load: str
    file: str
    config: dict[str, Any]
    facts: dict[str, Any]
    logits: Callable[[Inputs], Tensor]


def to_plain(adapted: Adapted, task: int) -> Plain:
    """Merge one task, and scale its classifier so that its logits have the size of the learner's."""
    merged, weight, bias = adapted.merge(task)
    backbone = adapted.model.backbone
    _require_whole(backbone, merged)
    weight, bias = weight.cpu().float(), bias.cpu().float()
    inputs = adapted.support.inputs.map(lambda v: v[task])
    found = backbone.features(inputs, merged.model).float() @ weight.T + bias
    # Where the head normalises features, logits of the plain classifier have another size. One common factor changes
    # no prediction and brings the checkpoint's probabilities near the learner's.
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
