"""Several task sources in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtl.episode import Episode, TaskSource
from mtl.tools.identity import identity_of


@dataclass(frozen=True)
class Alternating:
    """Blocks of ``block`` episodes from each source in turn, such as one of five shots and one of a single shot."""

    sources: Sequence[TaskSource]
    block: int = 1

    def sample(self, index: int) -> Episode:
        return self.sources[index // self.block % len(self.sources)].sample(index)

    def identity(self) -> dict[str, Any]:
        """See :class:`~mtl.episode.Identified`."""
        count, block = len(self.sources), self.block
        sources = [identity_of(s, (i * block, (count + i) * block)) for i, s in enumerate(self.sources)]
        return {"kind": "Alternating", "block": self.block, "sources": sources}
