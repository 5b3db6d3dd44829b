"""Episodes whose readouts are computed once and kept, for a network in which nothing is modulated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import mtl
from mtl.episode import Readable
from mtl.tools.identity import identity_of


@dataclass(frozen=True)
class KeptTasks:
    """The first ``count`` episodes of a source, over and over, with features of the frozen network in place of inputs.

    Args:
        source: of episodes with raw inputs.
        backbone: with ``sites="none"``.
        count: different episodes, at least 1. One of glyphs at five shots takes 130 kB.
    """

    source: Readable
    backbone: mtl.Backbone
    count: int
    _kept: dict[int, mtl.Episode] = field(default_factory=dict, repr=False)

    def identity(self) -> dict[str, Any]:
        """Of the episodes and of the network that reads them; see :class:`mtl.episode.Identified`."""
        source = identity_of(self.source, (0, self.count // 2, self.count - 1))
        return {"kind": "KeptTasks", "count": self.count, "source": source, "backbone": self.backbone.identity()}

    def sample(self, index: int) -> mtl.Episode:
        index %= self.count
        if index not in self._kept:
            self._kept[index] = self._read(self.source.sample(index))
        return self._kept[index]

    def read(self, index: int) -> tuple[list[str], list[Any], list[Any]]:
        """Class names, support examples and queries of an episode; see :meth:`mtl.ClassTasks.read`."""
        return self.source.read(index % self.count)

    def _read(self, episode: mtl.Episode) -> mtl.Episode:
        """Support and queries in one pass of the network."""
        sides, labels = (episode.support, episode.query), episode.support.labels.shape[1]
        both = mtl.Inputs.cat([side.inputs for side in sides], 1)
        found = mtl.Inputs.of(self.backbone.with_prefix(both.flatten())).unflatten(both.shape[0])
        inputs = found.map(lambda t: t[:, :labels]), found.map(lambda t: t[:, labels:])
        support, query = (mtl.Examples(x, side.labels) for x, side in zip(inputs, sides, strict=True))
        return replace(episode, support=support, query=query)
