"""Knowing when to stay: how far to follow the generator, by cross-validation inside the support set.

One example of each class in turn is left out, the generator reads the rest, and several candidates, from "the last
level, as it is" to "what the generator emits", are judged on what was left out. Their logits are then mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.calibration import LeftOut
from mtl.fewshot.generators import AbstractGenerator, AbstractSiteGenerator, SupportView
from mtl.fewshot.model import TaskModel
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared

MOST_FOLDS = 10
SHARPNESS = 0.5  # of the choice: weights are softmax(0.5 total log-likelihood), since left-out examples are few
HEAD_START = 2.0  # of the generator, in nats: it was trained on more tasks than this one has examples
SETTINGS = {"version": 2, "sharpness": SHARPNESS, "head start": HEAD_START}  # kept results of other ones do not count
NEGLIGIBLE = 0.01  # weights below this are dropped


@dataclass(frozen=True)
class Candidate:
    """One row of a choice.

    Args:
        name: such as ``"generator"``.
        log_likelihood: mean log-probability of the right class of a left-out example; nan without any.
        weight: its part of the mixture, in ``0 .. 1``.
    """

    name: str
    log_likelihood: float
    weight: float


@dataclass(frozen=True)
class Choice:
    """How much each candidate counts, and why.

    Args:
        names: of the candidates.
        log_likelihood: mean log-probability of the right class of a left-out example, ``(tasks, candidates)``.
        weights: ``(tasks, candidates)``, rows sum to one.
        folds: how often one example per class was left out; 0 where a class has a single example.
        left_out: left-out examples of a task, all folds together.
    """

    names: tuple[str, ...]
    log_likelihood: Tensor
    weights: Tensor
    folds: int
    left_out: int

    def rows(self, task: int = 0) -> list[Candidate]:
        """The candidates of one task, in the order in which they were tried."""
        found = zip(self.names, self.log_likelihood[task].tolist(), self.weights[task].tolist(), strict=True)
        return [Candidate(*row) for row in found]

    def of_task(self, task: int) -> Choice:
        """The choice of one task."""
        row = slice(task, task + 1)
        return replace(self, log_likelihood=self.log_likelihood[row].clone(), weights=self.weights[row].clone())

    def __str__(self) -> str:
        """One line: ``generator 0.83, half-way 0.17 (5 folds, 25 left-out examples)``."""
        weights = dict(zip(self.names, self.weights.mean(0).tolist(), strict=True))
        counted = sorted((item for item in weights.items() if item[1] > 0), key=lambda item: -item[1])
        why = f"{self.folds} folds, {self.left_out} left-out examples"
        why = why if self.folds else "as a class has one example, none was left out"
        tasks = f"mean of {len(self.weights)} tasks; " if len(self.weights) > 1 else ""
        return f"{', '.join(f'{name} {weight:.2f}' for name, weight in counted)} ({tasks}{why})"


def by_left_out(names: tuple[str, ...], left_out: LeftOut) -> Choice:
    """The choice by what each candidate said of the left-out examples.

    Args:
        left_out: with logits ``(candidates, tasks, m, ways)``.
    """
    scores = torch.stack([log_likelihood(logits, left_out.labels) for logits in left_out.logits], 1)
    _, _, count, ways = left_out.logits.shape
    return choose(names, scores, count // ways, count)


def by_head_start(names: tuple[str, ...], tasks: int) -> Choice:
    """The choice where nothing can be left out: the generator by its head start, and a little of all others.

    They steady each other: on kinds of question that no training saw this is better than the generator alone.
    """
    nothing = torch.zeros(tasks, len(names))
    return replace(choose(names, nothing, 0, 0), log_likelihood=torch.full_like(nothing, torch.nan))


def candidates(generator: AbstractGenerator, meta: Tensors, evidence: bool = True) -> dict[str, Tensors]:
    """What may be made of a support set, from the plainest to what the generator emits.

    Args:
        meta: emitted by the generator.
        evidence: also those that let each level count by what it says of left-out examples.
    """
    if not isinstance(generator, AbstractSiteGenerator):
        return generator.candidates(meta)
    plain, static, rule = generator.identity(meta), generator.static(meta), generator.rule(meta)
    found = {"last level": _last_level(generator, plain)} if len(generator.levels) > 1 else {}
    found |= {"all levels" if found else "plain": plain}
    found |= {} if static is None else {"static": static}
    found |= {} if rule is None else {"rule": rule}
    if evidence and (factors := generator.by_evidence(meta)) is not None:
        weighed = lambda meta: meta | {"scale": meta["scale"] * factors}  # noqa: E731
        found |= {"levels by evidence": weighed(plain), "generator by evidence": weighed(meta)}
    return found | {"half-way": _half_way(meta), "generator": meta}


def _last_level(generator: AbstractGenerator, plain: Tensors) -> Tensors:
    """Nothing but the network's own features, at the length that a head for all features expects."""
    width, last = generator.widths[-1], generator.levels[-1].width
    scale = plain["scale"].clone()
    scale[:, -width:-last] = 0
    scale[:, -last:] = (width / last) ** 0.5
    return plain | {"scale": scale}


def _half_way(meta: Tensors) -> Tensors:
    """Between the identity and what was emitted: the geometric mean of scales, where they are positive."""
    scale = meta["scale"]
    between = torch.where(scale > 0, scale.clamp_min(0).sqrt(), (1 + scale) / 2)
    return meta | {"scale": between, "shift": meta["shift"] / 2}


def folds(labels: Tensor, ways: int, most: int = MOST_FOLDS) -> tuple[Tensor, Tensor] | None:
    """Which examples stay and which are left out when one of each class is left out in turn.

    There are as many folds as the smallest class has examples, and at most ``most``; a class keeps an example or more.

    Args:
        labels: ``(tasks, n)``.

    Returns:
        Indices ``(tasks * folds, n - ways)`` of those that stay and ``(tasks * folds, ways)`` of those left out, among
        the ``tasks * n`` examples of all tasks; None where a class has a single example.
    """
    members = F.one_hot(labels, ways)
    count = min(int(members.sum(1).min()), most)
    if count < 2:
        return None
    tasks, n = labels.shape
    rank = members.cumsum(1).gather(2, labels.unsqueeze(-1)).squeeze(-1) - 1  # of an example in its class
    out = rank.unsqueeze(1) == torch.arange(count, device=labels.device).view(1, -1, 1)
    order = out.int().argsort(dim=-1, stable=True) + n * torch.arange(tasks, device=labels.device).view(-1, 1, 1)
    return order[..., : n - ways].flatten(0, 1), order[..., n - ways :].flatten(0, 1)


def leave_out(
    model: TaskModel,
    view: SupportView,
    prepared: Prepared,
    split: tuple[Tensor, Tensor],
    tries: Callable[[Tensors], dict[str, Tensors]],
    solve: Callable[[Prepared, Tensor, int, Tensors], Tensors],
) -> LeftOut:
    """Ask candidates for examples that are left out of the support set, all folds in one batch.

    Args:
        view: the support set as the generator sees it.
        prepared: its inputs.
        split: what stays and what is left out, from :func:`folds`.
        tries: the candidates, from what the generator emits for the examples that stay.
        solve: the inner loop: from inputs, labels, number of classes and start to fast weights.

    Returns:
        With logits ``(candidates, tasks, m, ways)``.
    """
    (stay, out), tasks, ways = split, view.labels.shape[0], view.ways
    seen = view.regroup(stay)
    kept, asked = prepared.regroup(stay), prepared.regroup(out)
    found = list[Tensor]()
    for meta in tries(model.generator(seen)).values():
        logits = model.query_logits(kept, seen.labels, ways, asked, solve(kept, seen.labels, ways, meta), meta)
        found.append(logits.unflatten(0, (tasks, -1)).flatten(1, 2))
    return LeftOut(torch.stack(found), view.labels.flatten()[out].view(tasks, -1))


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean log-probability of the right class: ``(tasks, m, ways), (tasks, m) -> (tasks,)``."""
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(1)


def choose(names: tuple[str, ...], scores: Tensor, count: int, left_out: int) -> Choice:
    """Weights from log-likelihoods ``(tasks, candidates)``; the last candidate, the generator, has a head start.

    Args:
        count: of folds.
        left_out: examples of a task.
    """
    evidence = SHARPNESS * left_out * scores.nan_to_num(-torch.inf)
    evidence[:, -1] += HEAD_START
    weights = evidence.softmax(-1)
    weights = torch.where(weights < NEGLIGIBLE, 0, weights)
    return Choice(names, scores.cpu(), (weights / weights.sum(-1, keepdim=True)).cpu(), count, left_out)


def mix(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture, the weighted mean of log-probabilities up to a constant per example.

    A mixture of linear classifiers stays one.

    Args:
        logits: ``(candidates, tasks, m, ways)``.
        weights: ``(tasks, candidates)``.
    """
    return torch.einsum("ctmw,tc->tmw", logits, weights.to(logits))
