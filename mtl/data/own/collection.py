"""Labelled examples by class, of any kind of data."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from mtl.episode import Inputs
from mtl.tools.identity import digest
from mtl.tools.progress import ProgressBar


@dataclass(frozen=True, eq=False)
class AbstractCollection(abc.ABC):
    """Examples by class. A subclass says how to read them; that is all that a new kind of data needs.

    Args:
        source: where they came from, for messages.
        items: positions of the examples of each class, at least one each; class names are sorted.
        parts: class names of train, val and test where the source came divided *by class*; otherwise empty. For
            ``given=`` of :func:`~mtl.data.own.splits.split_classes`.
        skipped: names of the examples that were left out, each with the reason.
        notes: one line each about what was left out when the source was opened: files, rows, duplicates, classes.
        groups: what an example belongs to, by position, such as the patient or the track; empty without groups.
            :class:`~mtl.ClassTasks` never draws support and query from one group.
        origin: the collection that this one is a selection of; they share cached examples.
    """

    noun: ClassVar[str] = "examples"
    """The plural word for the examples, for messages and as the default family of their tasks."""
    expected: ClassVar[str] = "tensors (n, ...)"
    """The inputs that preprocessing should make of ``n`` examples, for messages."""

    source: str
    items: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    skipped: tuple[str, ...] = field(default=(), kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    groups: Mapping[int, str] = field(default_factory=dict, kw_only=True)
    origin: AbstractCollection | None = field(default=None, kw_only=True)
    _digests: dict[int, str] = field(default_factory=dict, init=False, repr=False)  # of the contents, by position

    @abc.abstractmethod
    def read(self, positions: Sequence[int]) -> list[Any]:
        """The examples at these positions, as people know them and ``preprocess`` takes them."""

    def key(self, position: int) -> Hashable:
        """Key of an example in a cache that several task sources share."""
        return self._read_by, position

    def select(self, items: Mapping[str, tuple[int, ...]]) -> Self:
        """The same examples under other classes, or some of them; they are read and cached only once.

        Args:
            items: positions of the examples of each class.
        """
        named = {name: items[name] for name in sorted(items)}
        return replace(self, items=named, parts={}, origin=self._read_by)

    @property
    def _read_by(self) -> AbstractCollection:
        return self if self.origin is None else self.origin

    def identity_of_example(self, position: int) -> str | None:
        """What tells an example from all others, also in other runs; None keeps it out of caches on disk."""
        return None

    def digest_of_example(self, position: int) -> str:
        """A hash of the contents of an example; by default of what :meth:`read` makes of it."""
        return digest(*self.read([position]))

    def identity(self) -> dict[str, Any]:
        """Kind, size, and digests of labels, contents and groups; see :class:`~mtl.episode.Identified`.

        Reads every example once, with a progress bar when that takes more than a moment. Where the collection lies,
        and what its files are called, does not count.
        """
        known = self._read_by._digests
        missing = [p for places in self.items.values() for p in places if p not in known]
        for position in ProgressBar(missing, desc=f"contents of {self.source}", unit=self.noun, delay=3, leave=False):
            known[position] = self.digest_of_example(position)
        members = list(self.items.items())
        return {
            "kind": type(self).__name__,
            "examples": len(self),
            "labels": digest([[name, len(places)] for name, places in members]),
            "contents": digest([[known[p] for p in places] for _, places in members]),
            "groups": digest([[self.groups.get(p) for p in places] for _, places in members]) if self.groups else None,
        }

    def accepts(self, inputs: Inputs) -> bool:
        """Whether preprocessed examples look like :attr:`expected`."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(self.items)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def __iter__(self) -> Iterator[Any]:
        """All examples, class by class, each read when it is asked for."""
        return (example for members in self.items.values() for p in members for example in self.read([p]))

    def of_class(self, name: str) -> list[Any]:
        """The examples of a class."""
        return self.read(self.items[name])
