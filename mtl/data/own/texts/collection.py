"""Texts by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextCollection:
    """Texts by class.

    Args:
        source: where they came from, for messages.
        items: positions of the texts of each class, at least one each; class names are sorted.
        texts: by position.
        parts: class names of train, val and test where the source came divided *by class*; otherwise empty. For
            ``given=`` of :func:`~mtl.data.own.splits.split_classes`.
        skipped: names and reasons of the texts that were left out: blank, or in several classes.
    """

    source: str
    items: Mapping[str, tuple[int, ...]]
    texts: Sequence[str]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.items)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def of_class(self, name: str) -> list[str]:
        """The texts of a class."""
        return [self.texts[i] for i in self.items[name]]
