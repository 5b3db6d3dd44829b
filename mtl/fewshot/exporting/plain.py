"""What is exported and what was written; and one adapted task as a plain network and a plain linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.fewshot.adapted_task import AdaptedTask
from mtl.fewshot.exporting.parity import fitted_factors, reference_logits
from mtl.networks.backbones import Backbone
from mtl.networks.merging import merge
from mtl.networks.modulation import Modulation

AS_A_PROGRAM = 'to="pt2" and to="onnx" write network and classifier as they are computed'


@dataclass(frozen=True)
class Subject:
    """What is to be exported.

    Args:
        task: on any device.
        names: of the classes.
        inputs: ``(n, ...)``, on which the size of logits is compared.
    """

    task: AdaptedTask
    names: tuple[str, ...]
    inputs: Inputs

    @property
    def backbone(self) -> Backbone:
        return self.task.backbone


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
        exact: these are the task's, and not up to one factor per example.
        notes: what a user of such a folder should know.
    """

    load: str
    predict: str
    file: str
    config: dict[str, Any]
    facts: dict[str, Any]
    logits: Callable[[Inputs], Tensor]
    exact: bool = False
    notes: tuple[str, ...] = ()


def to_plain(subject: Subject) -> Plain:
    """Merge one task, and scale its classifier so that its logits have the size of the learner's.

    Raises:
        ValueError: a plain network with a linear classifier is not all of it.
    """
    task, backbone = subject.task, subject.backbone
    require_one_encoder(task)
    (part,) = task.parts
    modulation = one_modulation(subject)
    merged = merge(backbone, modulation)
    if merged.unmerged:
        raise ValueError(
            f"{backbone.name} has no plain checkpoint that predicts the same: {some(merged.unmerged, '; ')}. "
            f"{AS_A_PROGRAM}; or train a generator for sites that all have a bias"
        )
    weight, bias = (v.cpu().float() for v in part.linear())
    if not part.unit:
        return Plain(backbone, merged.model, weight, bias, modulation)
    found = backbone.features(subject.inputs, merged.model).float() @ weight.T + bias
    # Where the head normalises features, logits of the plain classifier have another size. One common factor changes
    # no prediction and brings the checkpoint's probabilities near the learner's.
    factor = fitted_factors(found, reference_logits(task, subject.inputs)).mean()
    return Plain(backbone, merged.model, weight / factor, bias / factor, modulation)


def require_one_encoder(task: AdaptedTask) -> None:
    """Refuse what is not a linear classifier of the pooled features of one network.

    Raises:
        ValueError: naming what there is besides.
    """
    name, levels = task.backbone.name, len(task.backbone.levels)
    if levels > 1:
        raise ValueError(
            f"{name} reads {levels} levels, and a plain checkpoint classifies the last only: {AS_A_PROGRAM}; or load "
            "the backbone with levels='last' (mtl train --levels last), and adapt with a generator for that"
        )
    if task.standard is not None:
        raise ValueError(f"{name}: features whose levels are made even are no linear map of others; {AS_A_PROGRAM}")
    if len(task.parts) > 1:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in task.facts.get("choice", {}).items())
        why = f"{weights or len(task.parts)}: a mixture of candidates is no single network"
        alone = "adapt(support, cross_validate=False), mtl adapt --no-cross-validate, for the generator's alone"
        raise ValueError(f"{why}; {AS_A_PROGRAM}; or {alone}")


def one_modulation(subject: Subject) -> Modulation:
    """Scale and shift of the sites of a task of one part, ``(1, P)`` on the CPU."""
    (part,) = subject.task.parts
    if part.modulation is None:
        return Modulation.identity(1, subject.backbone.modulation_width)
    return Modulation(part.modulation.scale.cpu(), part.modulation.shift.cpu())


def some(names: Iterable[str], between: str = ", ") -> str:
    """The first three names, and how many more."""
    names = sorted(names)
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
