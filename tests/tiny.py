"""A backbone and tasks small enough to train in a test."""

from __future__ import annotations

from typing import Any

import torch

import mtl

VIT = {
    "name": "vit_tiny_patch16_224",
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "in_chans": 1,
}


def backbone(**changes) -> mtl.Backbone:
    return mtl.load_backbone(**(VIT | {"pretrained": False} | changes))


class Blobs:
    """Classes are noisy prototypes, images ``(1, 16, 16)``; episode ``i`` is a function of ``i`` alone."""

    def __init__(self, ways: int = 3, shots: int = 2, queries: int = 3, poisoned: tuple[int, ...] = ()) -> None:
        self.ways, self.shots, self.queries, self.poisoned = ways, shots, queries, poisoned

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "Blobs",
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries,
            "poisoned": list(self.poisoned),
        }

    def sample(self, index: int) -> mtl.Episode:
        g = torch.Generator().manual_seed(index)
        prototypes = torch.randn(self.ways, 1, 1, 16, 16, generator=g)
        labels = torch.arange(self.ways)

        def examples(n: int) -> mtl.Examples:
            inputs = prototypes + 1.5 * torch.randn(self.ways, n, 1, 16, 16, generator=g)
            return mtl.Examples(inputs.flatten(0, 1)[None], labels.repeat_interleave(n)[None])

        support, query = examples(self.shots), examples(self.queries)
        if index in self.poisoned:
            query.inputs.tensor.fill_(float("nan"))
        return mtl.Episode(support, query, self.ways, (f"family {index % 2}",))
