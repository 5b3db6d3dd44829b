"""One batch that is asked of many tasks: each example's features once, then the classifiers of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot import AdaptedTask
from mtl.fewshot.adapted_task import Part
from mtl.fewshot.model import at_least_float32
from mtl.networks.backbones import Backbone
from mtl.serving.passes import Row, features_of


class Question(NamedTuple):
    """What one task is asked.

    Args:
        example: its place among the inputs; several questions may be about one.
        task: to be asked.
    """

    example: int
    task: AdaptedTask


@dataclass(frozen=True)
class Answers:
    """Logits of one task.

    Args:
        task: that was asked.
        places: of the questions, ``n``.
        logits: ``(n, ways)`` on the CPU.
    """

    task: AdaptedTask
    places: list[int]
    logits: Tensor


@torch.no_grad()
def mixed_answers(backbone: Backbone, inputs: Inputs, questions: Sequence[Question]) -> Iterator[Answers]:
    """The answers, task by task: those that each task would give alone, to rounding.

    Args:
        inputs: preprocessed, ``(n, ...)``.
        questions: at least one, in any order; all about tasks of this network.
    """
    groups = _by_task(questions)
    rows, uses = _rows_and_uses(groups)
    logits = _logits(at_least_float32(features_of(backbone, inputs, rows)), groups, uses).cpu()
    for group in groups:
        yield Answers(group.task, group.places, logits[group.begin : group.end, : group.task.ways])


@dataclass(frozen=True)
class _Group:
    """The questions of one task, which are next to each other among the logits."""

    task: AdaptedTask
    places: list[int]
    examples: list[int]
    begin: int

    @property
    def end(self) -> int:
        return self.begin + len(self.places)


@dataclass(frozen=True)
class _Use:
    """What one part of one task makes of features.

    Args:
        part: of the task.
        group: its questions.
        rows: of the features, one for each question.
    """

    part: Part
    group: _Group
    rows: list[int] = field(default_factory=list)


def _by_task(questions: Sequence[Question]) -> list[_Group]:
    places: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(id(question.task), []).append(place)
    groups, begin = [], 0
    for of_task in places.values():
        examples = [questions[place].example for place in of_task]
        groups.append(_Group(questions[of_task[0]].task, of_task, examples, begin))
        begin += len(of_task)
    return groups


def _rows_and_uses(groups: Sequence[_Group]) -> tuple[list[Row], list[_Use]]:
    """The features that are needed, each once, and who reads them."""
    rows: dict[tuple[int, int], tuple[int, Row]] = {}
    uses = []
    for group in groups:
        for part in group.task.parts:
            modulated = None if part.scale is None else part
            use = _Use(part, group)
            for example in group.examples:
                row = len(rows), Row(example, modulated)
                use.rows.append(rows.setdefault((example, id(part.scale)), row)[0])
            uses.append(use)
    return [row for _, row in rows.values()], uses


def _logits(features: Tensor, groups: Sequence[_Group], uses: Sequence[_Use]) -> Tensor:
    """``(questions, most ways)``, group by group; what a task has no class for is minus infinity."""
    most = max(group.task.ways for group in groups)
    logits = features.new_full((groups[-1].end, most), -torch.inf)
    begun: set[int] = set()
    for _, alike in groupby(sorted(uses, key=_kind), _kind):
        alike = list(alike)
        read = _as_read(features, alike).split([len(use.rows) for use in alike])
        for use, own in zip(alike, read, strict=True):
            group = use.group
            found = F.linear(own, use.part.weight, use.part.bias)
            place = logits[group.begin : group.end, : group.task.ways]
            place.copy_(found) if group.begin not in begun else place.add_(found)
            begun.add(group.begin)
    return logits


def _kind(use: _Use) -> tuple[int, int, bool, bool]:
    """What is alike here is computed together."""
    standard = use.group.task.standard
    mean, inv_std = (0, 0) if standard is None else (id(standard.mean), id(standard.inv_std))
    return mean, inv_std, use.part.feature_scale is None, use.part.unit


def _as_read(features: Tensor, uses: Sequence[_Use]) -> Tensor:
    """Features as the classifiers of parts of one kind read them, part by part."""
    rows = torch.tensor([row for use in uses for row in use.rows])
    found = features.index_select(0, rows.to(features.device))
    if (standard := uses[0].group.task.standard) is not None:
        found = standard.apply(found)
    scales = [use.part.feature_scale for use in uses if use.part.feature_scale is not None]
    shifts = [use.part.feature_shift for use in uses if use.part.feature_shift is not None]
    if scales:
        counts = torch.tensor([len(use.rows) for use in uses])
        of_rows = torch.repeat_interleave(torch.arange(len(uses)), counts).to(features.device)
        found = found * torch.stack(scales).index_select(0, of_rows) + torch.stack(shifts).index_select(0, of_rows)
    return F.normalize(found, dim=-1) if uses[0].part.unit else found
