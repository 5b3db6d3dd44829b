"""Inputs of networks, and episodes: sampled few-shot problems, always with a leading task axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

READOUT = "readout"
"""Name of finished features ``(n, D)`` among inputs by name; see ``with_prefix`` of a backbone."""
PREFIX = "prefix"
"""Name of what the frozen part of a backbone made of tokens; with a dot and more, of what else it made of examples."""
RawInputs = Tensor | Mapping[str, Tensor]
"""Images as one tensor, or tensors by name, such as ``input_ids`` and ``attention_mask``."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """One tensor or several by name, handled alike: all have the same leading axes, ``(tasks, examples, ...)``.

    Every public function also takes a plain tensor or a dict of tensors where it takes inputs.

    Args:
        tensors: by name, at least one; the name of a single plain tensor is ``""``.
    """

    tensors: Mapping[str, Tensor]

    @staticmethod
    def of(inputs: Inputs | RawInputs) -> Inputs:
        """Inputs from a tensor or a mapping of names to tensors.

        Raises:
            ValueError: for anything else.

        >>> Inputs.of(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
        """
        if isinstance(inputs, Inputs):
            return inputs
        tensors = {"": inputs} if isinstance(inputs, Tensor) else inputs
        if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
            raise ValueError(f"inputs are a {type(inputs).__name__}; expected a tensor, or a dict of tensors by name")
        return Inputs(dict(tensors))

    @property
    def named(self) -> bool:
        """Whether these are tensors by name rather than one plain tensor."""
        return "" not in self.tensors

    @property
    def raw(self) -> Any:
        """The plain tensor, or the dict of tensors by name, as a network takes them."""
        return dict(self.tensors) if self.named else self.tensors[""]

    @property
    def tensor(self) -> Tensor:
        """The plain tensor.

        Raises:
            ValueError: these are tensors by name.
        """
        if self.named:
            raise ValueError(f"inputs are tensors named {', '.join(self.tensors)}, expected a single one; pick a name")
        return self.tensors[""]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors.values())

    @staticmethod
    def of_prefix(name: str) -> bool:
        """Whether a tensor of this name was computed by a backbone's frozen part rather than read by it."""
        return name == PREFIX or name.startswith(f"{PREFIX}.")

    @property
    def computed(self) -> bool:
        """Whether all of these were computed by a backbone, and nothing is left of images or tokens."""
        return all(name == READOUT or self.of_prefix(name) for name in self.tensors)

    @property
    def shape(self) -> torch.Size:
        """Shape of the first tensor. The others share its leading axes."""
        return next(iter(self)).shape

    @property
    def count(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def map(self, f: Callable[[Tensor], Tensor]) -> Inputs:
        """Apply ``f`` to every tensor."""
        return Inputs({name: f(tensor) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Inputs:
        """Move to a device, and floats to ``dtype``."""
        # A copy to main memory has to be complete before anybody reads it.
        eager = torch.device(device).type != "cpu"
        move = lambda t: t.to(device, dtype if t.is_floating_point() else None, non_blocking=eager)  # noqa: E731
        return self.map(move)

    def take(self, indices: Tensor, axis: int = 0) -> Inputs:
        """Some rows along an axis; ``indices`` may be on any device."""
        return self.map(lambda t: t.index_select(axis, indices.to(t.device)))

    def flatten(self) -> Inputs:
        """``(tasks, examples, ...)`` to ``(tasks * examples, ...)``."""
        return self.map(lambda t: t.flatten(0, 1))

    def unflatten(self, tasks: int) -> Inputs:
        """``(tasks * examples, ...)`` to ``(tasks, examples, ...)``."""
        return self.map(lambda t: t.unflatten(0, (tasks, -1)))

    def with_task_axis(self) -> Inputs:
        """``(n, ...)`` to ``(1, n, ...)``."""
        return self.map(lambda t: t.unsqueeze(0))

    def without(self, name: str) -> Inputs:
        """All tensors but the one of this name; there may be none of it."""
        return Inputs({k: v for k, v in self.tensors.items() if k != name}) if name in self else self

    @staticmethod
    def cat(parts: Sequence[Inputs], axis: int = 0) -> Inputs:
        """Join inputs along an axis."""
        return Inputs({name: torch.cat([p[name] for p in parts], axis) for name in parts[0].tensors})

    @staticmethod
    def pad(parts: Sequence[Inputs]) -> list[Inputs]:
        """Fill up texts with zeros at the right, so that all have the length of the longest.

        Args:
            parts: tensors by name, each ``(tasks, examples, length, ...)``.

        Raises:
            ValueError: lengths differ and there is no ``attention_mask`` that would tell tokens from padding.
        """
        lengths = {k: {p[k].shape[2] for p in parts} for k in parts[0].tensors if k and parts[0][k].dim() > 2}
        unequal = {name: max(values) for name, values in lengths.items() if len(values) > 1}
        if unequal and "attention_mask" not in unequal:
            found = sorted(set().union(*lengths.values()))
            raise ValueError(
                f"cannot stack texts of unequal lengths {found} without an attention_mask: padding would be read"
            )
        return [Inputs({k: _pad(v, unequal.get(k)) for k, v in part.tensors.items()}) for part in parts]


@dataclass(frozen=True, init=False)
class Examples:
    """Labelled examples of ``tasks`` tasks.

    Args:
        inputs: a tensor, tensors by name, or :class:`Inputs`; the first two axes are ``(tasks, examples)``.
        labels: ``(tasks, examples)`` integers in ``0 .. ways - 1``, counted anew in each task: a tensor, an array or
            nested lists.

    Raises:
        ValueError: labels are no integers, or not as many as examples.
    """

    inputs: Inputs
    labels: Tensor

    def __init__(self, inputs: Inputs | RawInputs, labels: Any) -> None:
        object.__setattr__(self, "inputs", Inputs.of(inputs))
        object.__setattr__(self, "labels", _as_labels(labels, self.inputs.shape[:2]))

    def map(self, f: Callable[[Tensor], Tensor]) -> Examples:
        """Apply ``f`` to every tensor."""
        return Examples(self.inputs.map(f), f(self.labels))

    def to(self, device: torch.device | str) -> Examples:
        """Move every tensor to a device."""
        return Examples(self.inputs.to(device), Inputs.of(self.labels).to(device).tensor)


def _as_labels(labels: Any, examples: torch.Size) -> Tensor:
    """Labels as a tensor of 64-bit integers, one for each of the examples ``(tasks, n)``."""
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}: expected integers 0 .. ways - 1, see labels.long()")
    if labels.shape != examples:
        way_out = "one label per example; give both a task axis, such as inputs[None] and labels[None] of one task"
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} for (tasks, examples) {tuple(examples)}: expected {way_out}"
        )
    return labels.long()


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

    def map(self, f: Callable[[Tensor], Tensor]) -> Episode:
        """Apply ``f`` to every tensor."""
        return replace(self, support=self.support.map(f), query=self.query.map(f))

    def to(self, device: torch.device | str) -> Episode:
        """Move every tensor to a device."""
        return replace(self, support=self.support.to(device), query=self.query.to(device))

    def __getitem__(self, tasks: slice) -> Episode:
        """The episodes of a slice of the task axis."""
        return replace(self.map(lambda t: t[tasks]), families=self.families[tasks])

    @staticmethod
    def stack(episodes: Sequence[Episode]) -> Episode:
        """Join episodes of equal shape along the task axis. Texts are padded to the longest on their side.

        Raises:
            ValueError: when numbers of ways or tensor shapes differ, group the episodes by shape first; or when tokens
                differ in length and no ``attention_mask`` would tell them from padding.
        """
        shapes = {_sizes(e) for e in episodes}
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


@runtime_checkable
class Identified(Protocol):
    """Says what it is: two that differ in anything that counts have different identities.

    Task sources, collections, preprocessing and backbones have one. A run that is continued compares it with the one
    that it began with; it has to be the same in every process and on every device.
    """

    def identity(self) -> dict[str, Any]:
        """Settings by name, and digests of what is too long to tell, as JSON gives them back."""
        ...


@runtime_checkable
class Readable(Protocol):
    """Tasks that can be shown to people: :class:`mtl.ClassTasks`, families of them, and the embedded ones."""

    def sample(self, index: int) -> Episode:
        """See :class:`TaskSource`; examples are ordered by class."""
        ...

    def read(self, index: int) -> tuple[list[str], list[Any], list[Any]]:
        """Names of the classes of the same episode, its support examples and its queries, as people know them."""
        ...


def stack_by_shape(episodes: Sequence[Episode]) -> list[tuple[list[int], Episode]]:
    """Group episodes of one task each by shape: for each group their positions in the list, and the stacked batch."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, episode in enumerate(episodes):
        groups.setdefault(_sizes(episode), []).append(i)
    return [(positions, Episode.stack([episodes[i] for i in positions])) for positions in groups.values()]


def _sizes(episode: Episode) -> tuple[int, int, int]:
    return episode.ways, episode.support.labels.shape[1], episode.query.labels.shape[1]


def _cat(parts: Iterable[Examples]) -> Examples:
    inputs, labels = zip(*((p.inputs, p.labels) for p in parts), strict=True)
    _check_names(inputs)
    return Examples(Inputs.cat(Inputs.pad(inputs)), torch.cat(labels))


def _check_names(inputs: Sequence[Inputs]) -> None:
    kinds = dict.fromkeys(", ".join(sorted(i.tensors)) if i.named else "a plain tensor" for i in inputs)
    if len(kinds) > 1:
        raise ValueError(
            f"episodes with different inputs ({' and '.join(kinds)}) cannot be one batch: give tasks that one network "
            "reads, or so many of a kind in a row that a batch has one kind"
        )


def _pad(tokens: Tensor, length: int | None) -> Tensor:
    """``(tasks, n, l, ...) -> (tasks, n, length, ...)``, filled up with zeros; None leaves it as it is."""
    if length is None or tokens.shape[2] == length:
        return tokens
    missing = tokens.new_zeros(*tokens.shape[:2], length - tokens.shape[2], *tokens.shape[3:])
    return torch.cat([tokens, missing], 2)
