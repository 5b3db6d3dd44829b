"""Features of many examples, each under a modulation of its own, in passes of bounded size with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.adapted_task import Part
from mtl.networks.backbones import Backbone
from mtl.networks.backbones.prepared_inputs import examples_per_pass
from mtl.networks.modulation import Modulation

_MASK = "attention_mask"
# What a pass costs beside its tokens, in tokens: little where arithmetic is slow, much where launching kernels is.
_PASS_IN_TOKENS, _PASS_IN_TOKENS_ON_CPU = 8192, 64


class Row(NamedTuple):
    """One example under one modulation.

    Args:
        example: its place among the inputs.
        part: whose modulation of the sites counts; None for the plain network.
    """

    example: int
    part: Part | None


@dataclass(frozen=True)
class Lengths:
    """Tokens of each example, padding apart; 1 for images.

    Args:
        of: ``(n,)`` by example.
        padded: how long they all are.
    """

    of: list[int]
    padded: int


@torch.no_grad()
def features_of(backbone: Backbone, inputs: Inputs, rows: Sequence[Row]) -> Tensor:
    """Features ``(rows, D)`` on the device of the network.

    Args:
        inputs: preprocessed, ``(n, ...)``.
        rows: in any order.
    """
    lengths = _lengths(inputs)
    order = sorted(range(len(rows)), key=lambda i: (lengths.of[rows[i].example], rows[i].example))
    sizes = [lengths.of[rows[i].example] for i in order]
    most = examples_per_pass(inputs.map(lambda v: v[None, :1])) or len(rows)
    cost = _PASS_IN_TOKENS_ON_CPU if backbone.device.type == "cpu" else _PASS_IN_TOKENS
    found = [
        _pass(backbone, inputs, [rows[i] for i in order[piece]], lengths)
        for piece in pass_slices(sizes, most * lengths.padded, cost)
    ]
    back = torch.tensor(order).argsort().to(backbone.device)
    return torch.cat(found).index_select(0, back)


def pass_slices(lengths: Sequence[int], most: int, cost: int) -> Iterator[slice]:
    """Where to divide examples of ascending length into passes: one ends where padding would cost more than another.

    Args:
        lengths: in tokens, ascending.
        most: tokens of a pass, padding included; a single example may have more.
        cost: of a pass itself, in tokens.

    >>> list(pass_slices([3, 3, 3, 50, 51], most=1000, cost=64))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    start, padding = 0, 0
    for i in range(1, len(lengths)):
        count = i - start
        padding += count * (lengths[i] - lengths[i - 1])
        if padding > cost or (count + 1) * lengths[i] > most:
            yield slice(start, i)
            start, padding = i, 0
    if lengths:
        yield slice(start, len(lengths))


def _lengths(inputs: Inputs) -> Lengths:
    """Up to the last token that the mask keeps, whichever side the padding is on."""
    if _MASK not in inputs:
        return Lengths([1] * inputs.count, 1)
    mask = inputs[_MASK].cpu()
    places = torch.arange(1, mask.shape[1] + 1) * (mask != 0)
    return Lengths(places.amax(1).clamp_min(1).tolist(), mask.shape[1])


def _pass(backbone: Backbone, inputs: Inputs, rows: Sequence[Row], lengths: Lengths) -> Tensor:
    """Features ``(rows, D)`` in one forward pass."""
    examples = list(dict.fromkeys(row.example for row in rows))
    found = inputs.take(torch.tensor(examples))
    if _MASK in inputs:
        longest = max(lengths.of[i] for i in examples)
        found = found.map(lambda v: v[:, :longest] if v.dim() > 1 and v.shape[1] == lengths.padded else v)
    place = {example: i for i, example in enumerate(examples)}
    of_rows = torch.tensor([place[row.example] for row in rows])
    modulation = _modulation(backbone, rows)
    if modulation is None:
        features = backbone(found.with_task_axis())[0]
        return features if len(rows) == len(examples) else features.index_select(0, of_rows.to(features.device))
    if len(rows) == len(examples):
        return backbone(found.map(lambda v: v.unsqueeze(1)), modulation)[:, 0]
    # What lies below the first site is computed once for each example, however many tasks it is asked for.
    prepared = backbone.prepare(found.with_task_axis())
    return backbone(prepared.regroup(of_rows.unsqueeze(1)), modulation)[:, 0]


def _modulation(backbone: Backbone, rows: Sequence[Row]) -> Modulation | None:
    """A row each; None where all is plain."""
    parts = {id(row.part): row.part for row in rows}
    if list(parts.values()) == [None]:
        return None
    place = {key: i for i, key in enumerate(parts)}
    of_rows = torch.tensor([place[id(row.part)] for row in rows]).to(backbone.device)
    identity = Modulation.identity(1, backbone.modulation_width, device=backbone.device)
    each = [identity if part is None else part.modulation or identity for part in parts.values()]
    scale, shift = (torch.cat([getattr(m, name) for m in each]) for name in ("scale", "shift"))
    return Modulation(scale.index_select(0, of_rows), shift.index_select(0, of_rows))
