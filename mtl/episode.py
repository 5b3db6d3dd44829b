"""Episodes: sampled few-shot problems, always with a leading task axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]
"""Images ``(tasks, examples, channels, height, width)``, or tokens by name, each ``(tasks, examples, length, ...)``."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples of ``tasks`` tasks.

    Args:
        inputs: see :data:`Inputs`; the first two axes are ``(tasks, examples)``.
        labels: ``(tasks, examples)`` integers in ``0 .. ways - 1``, counted anew in each task.
    """

    inputs: Inputs
    labels: Tensor

    def map(self, f) -> Examples:
        """Apply ``f`` to every tensor."""
        inputs = {k: f(v) for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else f(self.inputs)
        return Examples(inputs, f(self.labels))

    def to(self, device: torch.device | str) -> Examples:
        return self.map(lambda t: t.to(device, non_blocking=True))


@dataclass(frozen=True)
class Episode:
    """A batch of equal-shaped episodes: what is learned from (``support``) and what it is judged on (``query``).

    Args:
        support: ``(tasks, n_support, ...)``.
        query: ``(tasks, n_query, ...)``.
        ways: number of classes, the same in every task of the batch.
        families: one word per task naming the kind of task, for results by family.
    """

    support: Examples
    query: Examples
    ways: int
    families: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> int:
        return self.support.labels.shape[0]

    def map(self, f) -> Episode:
        """Apply ``f`` to every tensor."""
        return Episode(self.support.map(f), self.query.map(f), self.ways, self.families)

    def to(self, device: torch.device | str) -> Episode:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def __getitem__(self, tasks: slice) -> Episode:
        """The episodes of a slice of the task axis."""
        return Episode(
            self.support.map(lambda t: t[tasks]), self.query.map(lambda t: t[tasks]), self.ways, self.families[tasks]
        )

    @staticmethod
    def stack(episodes: Sequence[Episode]) -> Episode:
        """Join episodes of equal shape along the task axis. Texts are padded to the longest on their side.

        Raises:
            ValueError: when numbers of ways or tensor shapes differ, group the episodes by shape first; or when tokens
                differ in length and no ``attention_mask`` would tell them from padding.
        """
        shapes = {(e.ways, e.support.labels.shape[1], e.query.labels.shape[1]) for e in episodes}
        if len(shapes) != 1:
            raise ValueError(
                f"cannot stack episodes of unequal (ways, support, query) sizes {sorted(shapes)}; group them by shape"
            )
        return Episode(
            _cat([e.support for e in episodes]),
            _cat([e.query for e in episodes]),
            episodes[0].ways,
            sum((e.families for e in episodes), ()),
        )


class TaskSource(Protocol):
    """A distribution of tasks: ``sample(index)`` is one episode, task axis of one, a function of the index alone."""

    def sample(self, index: int) -> Episode: ...


@dataclass(frozen=True)
class Alternating:
    """Blocks of ``block`` episodes from each source in turn, such as one of five shots and one of a single shot."""

    sources: Sequence[TaskSource]
    block: int = 1

    def sample(self, index: int) -> Episode:
        return self.sources[index // self.block % len(self.sources)].sample(index)


def stacked(episodes: Sequence[Episode]) -> list[tuple[list[int], Episode]]:
    """Group episodes of one task each by shape: for each group the places they came from, and the stacked batch."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, e in enumerate(episodes):
        groups.setdefault((e.ways, e.support.labels.shape[1], e.query.labels.shape[1]), []).append(i)
    return [(places, Episode.stack([episodes[i] for i in places])) for places in groups.values()]


def _cat(parts: Sequence[Examples]) -> Examples:
    first = parts[0].inputs
    if isinstance(first, dict):
        inputs = _padded({k: [p.inputs[k] for p in parts] for k in first})  # type: ignore[index]
    else:
        inputs = torch.cat([p.inputs for p in parts])  # type: ignore[misc]
    return Examples(inputs, torch.cat([p.labels for p in parts]))


def _padded(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Join tokens by name along the task axis, with zeros at the right of the shorter ones."""
    lengths = {t.shape[2] for tensors in parts.values() for t in tensors if t.dim() > 2}
    if len(lengths) > 1 and "attention_mask" not in parts:
        raise ValueError(
            f"cannot stack texts of unequal lengths {sorted(lengths)} without an attention_mask: padding would be read"
        )
    return {name: torch.cat([_lengthened(t, max(lengths, default=0)) for t in ts]) for name, ts in parts.items()}


def _lengthened(tokens: Tensor, length: int) -> Tensor:
    """``(tasks, n, l, ...) -> (tasks, n, length, ...)``, padded with zeros."""
    if tokens.dim() < 3 or tokens.shape[2] == length:
        return tokens
    missing = tokens.new_zeros(*tokens.shape[:2], length - tokens.shape[2], *tokens.shape[3:])
    return torch.cat([tokens, missing], 2)
