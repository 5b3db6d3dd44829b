"""Several task sources in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtl.data.own.ranges import at_least
from mtl.episode import Episode, TaskSource
from mtl.tools.identity import identity_of


@dataclass(frozen=True)
class Alternating:
    """Blocks of ``block`` episodes from each source in turn, such as one of five shots and one of a single shot.

    Raises:
        ValueError: there is no source, or ``block`` is below 1.
    """

    sources: Sequence[TaskSource]
    block: int = 1

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("Alternating(sources=[]): expected at least one source of tasks")
        at_least(1, "block", self.block)

    def sample(self, index: int) -> Episode:
        return self.sources[index // self.block % len(self.sources)].sample(index)

    def identity(self) -> dict[str, Any]:
        """See :class:`~mtl.episode.Identified`."""
        count, block = len(self.sources), self.block
        sources = [identity_of(s, (i * block, (count + i) * block)) for i, s in enumerate(self.sources)]
        return {"kind": "Alternating", "block": self.block, "sources": sources}
