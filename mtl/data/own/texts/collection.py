"""Texts by class."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mtl.data.own.collection import AbstractCollection
from mtl.episode import Inputs


@dataclass(frozen=True, eq=False)
class TextCollection(AbstractCollection):
    """Texts by class, see :class:`~mtl.data.own.collection.AbstractCollection`.

    Args:
        texts: by position.
    """

    noun: ClassVar[str] = "texts"
    expected: ClassVar[str] = "tokens by name with an attention_mask, each (n, length, ...)"

    texts: Sequence[str]

    def read(self, positions: Sequence[int]) -> list[str]:
        """The texts at these positions."""
        return [self.texts[position] for position in positions]

    def key(self, position: int) -> Hashable:
        """The text itself, so that collections with the same texts share its tokens."""
        return self.texts[position]

    def identity_of_example(self, position: int) -> str:
        """The text itself."""
        return self.texts[position]

    def accepts(self, inputs: Inputs) -> bool:
        """Whether there is an ``attention_mask`` and all tokens have its shape."""
        return "attention_mask" in inputs and all(t.shape[:2] == inputs["attention_mask"].shape for t in inputs)
