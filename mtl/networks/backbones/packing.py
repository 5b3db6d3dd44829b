"""What the frozen prefix made of examples, as tensors by name: kept apart, and put together again in other company."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mtl.episode import PREFIX, Inputs
from mtl.metagrad.tensors import has_values
from mtl.networks.backbones.passes import Passes
from mtl.networks.backbones.prefix import FrozenPrefix, probe
from mtl.networks.backbones.prepared_inputs import LEVELS, Prepared, count_of, halved
from mtl.networks.backbones.stored import AGAIN, Shape, Stored, size_of

log = logging.getLogger(__name__)
MASK = "attention_mask"


class NotByToken(Exception):
    """Some output of the prefix of a text network does not hold one vector per token."""


class Packing:
    """Turns a recorded prefix into tensors ``(n, ...)`` by name, and back.

    Of texts all outputs are per token; they become one tensor ``(n, length, width)``, which is cut and padded as the
    tokens are. Outputs that all examples share, such as rotary tables, are computed again when they are read.

    Args:
        prefix: of the network.
        length: tokens of the examples that its pattern was made of; None for images.

    Raises:
        NotByToken: an output of a text network is not per token.
    """

    def __init__(self, prefix: FrozenPrefix, length: int | None) -> None:
        self._by_token = length is not None
        self._has_levels = prefix.has_levels
        self._pattern = prefix.pattern
        calls = [tree_leaves(output) for output in self._pattern.outputs]
        self._call = [i for i, leaves in enumerate(calls) for _ in leaves]
        self._leaves, self._spec = tree_flatten(self._pattern.outputs)
        self._kept = [
            j
            for j, (leaf, rows) in enumerate(zip(self._leaves, self._pattern.rows, strict=True))
            if isinstance(leaf, Tensor) and rows and not (self._has_levels and j == len(self._leaves) - 1)
        ]
        by_example = {self._call[j] for j, rows in enumerate(self._pattern.rows) if rows}
        self._again = {self._call[j] for j, leaf in enumerate(self._leaves) if size_of(leaf) is not None} - by_example
        if self._by_token:
            self._check_tokens(length)

    def pack(self, stored: Stored) -> dict[str, Tensor]:
        """Tensors ``(n, ...)`` on the CPU; of images, and of levels, in float16 where that holds them."""
        leaves = tree_leaves(stored.outputs)
        levels = {LEVELS: halved(leaves[-1])} if self._has_levels else {}
        kept = [leaves[j] for j in self._kept]
        if self._by_token:
            return {PREFIX: torch.cat(kept, -1).cpu()} | levels
        rows = [self._pattern.rows[j] for j in self._kept]
        by_example = [x.unflatten(0, (-1, r)) if r > 1 else x for x, r in zip(kept, rows, strict=True)]
        return {f"{PREFIX}.{k}": halved(x) for k, x in enumerate(by_example)} | levels

    def unpack(self, tensors: Mapping[str, Tensor]) -> Stored:
        """The inverse of :meth:`pack`.

        Raises:
            ValueError: these were packed for another network, or for other sites.
        """
        expected = [PREFIX] if self._by_token else [f"{PREFIX}.{k}" for k in range(len(self._kept))]
        expected += [LEVELS] * self._has_levels
        if sorted(tensors) != sorted(expected):
            raise ValueError(
                f"inputs carry {', '.join(sorted(tensors))}, but the frozen part of this backbone gives "
                f"{', '.join(expected)}; compute them with its own with_prefix"
            )
        n = len(next(iter(tensors.values())))
        length = tensors[PREFIX].shape[1] if self._by_token else None
        leaves = [self._resized(j, n, length) for j in range(len(self._leaves))]
        for j, value in zip(self._kept, self._values(tensors), strict=True):
            leaves[j] = value
        if self._has_levels:
            leaves[-1] = tensors[LEVELS].float()
        return Stored(tree_unflatten(leaves, self._spec), self._pattern.rows)

    def _values(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        like = [self._leaves[j] for j in self._kept]
        if self._by_token:
            return list(tensors[PREFIX].split([x.shape[-1] for x in like], -1))
        values = [tensors[f"{PREFIX}.{k}"].to(x.dtype) for k, x in enumerate(like)]
        rows = [self._pattern.rows[j] for j in self._kept]
        return [x.flatten(0, 1) if r > 1 else x for x, r in zip(values, rows, strict=True)]

    def _resized(self, j: int, n: int, length: int | None) -> object:
        leaf, rows = self._leaves[j], self._pattern.rows[j]
        if self._call[j] in self._again:
            return AGAIN
        if not isinstance(leaf, Shape) or not rows:
            return leaf
        inner = leaf.size[1:] if length is None else (length, *leaf.size[2:])
        return Shape(torch.Size([n * rows, *inner]), leaf.like)

    def _check_tokens(self, length: int | None) -> None:
        for j, leaf in enumerate(self._leaves[: len(self._leaves) - self._has_levels]):
            size = size_of(leaf)
            if size is None or self._call[j] in self._again:
                continue
            per_token = len(size) == 3 and size[1] == length and self._pattern.rows[j] == 1
            if not per_token:
                raise NotByToken(f"an output has the shape {tuple(size)}")


def find_packing(name: str, prefix: FrozenPrefix, passes: Passes, example: Inputs) -> Packing | None:
    """How to pack a prefix, checked: what is packed, and cut as other company would, gives the same features.

    Args:
        name: of the network, for the log.
        passes: through the network.
        example: ``(1, n, ...)``, of three or more examples.

    Returns:
        None where there is no such way.
    """
    mask = example.tensors.get(MASK)
    if example.named and mask is None:
        return None
    try:
        packing = Packing(prefix, None if mask is None else mask.shape[2])
    except NotByToken as e:
        log.info("%s: its frozen prefix cannot be kept with each text: %s", name, e)
        return None
    if mask is not None:
        example = Inputs({**example.tensors, MASK: torch.cat([mask[..., :-2], 0 * mask[..., -2:]], -1)})
    whole = passes.prepare(Prepared(example))
    assert whole.stored is not None
    alone = _cut(packing.pack(whole.stored), example)
    modulation = probe(passes.modulator.width, mask.device if mask is not None else example.tensor.device)
    with torch.no_grad():
        expected = passes.modulated(whole, modulation)
        found = passes.modulated(Prepared(alone[0], packing.unpack(alone[1])), modulation)
    if not has_values(expected) or bool((found - expected).abs().max() <= 1e-2 * expected.abs().max()):
        return packing
    log.info("%s: its frozen prefix reads more of the inputs than can be kept; it is computed every time", name)
    return None


def _cut(packed: dict[str, Tensor], example: Inputs) -> tuple[Inputs, dict[str, Tensor]]:
    """Texts without their last two tokens, which are padding; of images nothing but their number."""
    if not example.named:
        return count_of(example), {k: v.to(example.tensor.device) for k, v in packed.items()}
    device = example[MASK].device
    cut = {k: (v[:, :-2] if k == PREFIX else v).to(device) for k, v in packed.items()}
    return example.map(lambda t: t[..., :-2]), cut
