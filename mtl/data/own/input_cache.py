"""Preprocessed examples, kept in memory as long as they fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtl.data.own.collection import AbstractCollection
from mtl.data.own.ranges import at_least
from mtl.episode import Inputs, RawInputs

MASK = "attention_mask"
Preprocess = Callable[[list[Any]], Inputs | RawInputs]
"""``n`` raw examples to a tensor ``(n, ...)`` or to tensors by name, each ``(n, ...)``, without randomness: such as the
``preprocess`` of a loaded backbone. Texts of unequal length have an ``attention_mask`` that is zero on padding."""


class InputCache:
    """Preprocesses examples, and keeps the recently used ones in memory. Task sources and threads may share one.

    Args:
        preprocess: see :data:`Preprocess`. With ``lambda items: backbone.with_prefix(backbone.preprocess(items))``
            each example also goes through the frozen layers below the first site only once, and with a backbone without
            sites through all of them.
        limit: bytes, at least 0; the least recently used examples go first, and 0 keeps none.
    """

    def __init__(self, preprocess: Preprocess, limit: int = 2 << 30) -> None:
        self.preprocess = preprocess
        self.limit = at_least(0, "cache_bytes", limit)
        self.size = 0
        self._rows: OrderedDict[Hashable, Inputs] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[InputCache], tuple[Preprocess, int]]:
        # what goes to a loader worker is an empty cache, not gigabytes of examples (and a lock cannot be pickled)
        return InputCache, (self.preprocess, self.limit)

    def __call__(self, collection: AbstractCollection, positions: Sequence[int]) -> Inputs:
        """Inputs ``(n, ...)`` of the examples at these positions; texts are padded to the longest of them.

        Raises:
            ValueError: preprocessing makes something else of them than the collection expects.
        """
        keys = [collection.key(position) for position in positions]
        rows = {key: row for key in keys if (row := self._get(key)) is not None}
        missing = {key: position for key, position in zip(keys, positions, strict=True) if key not in rows}
        if missing:
            items = collection.read(list(missing.values()))
            made = _split(_check(self.preprocess(items), collection, len(items)))
            for key, row in zip(missing, made, strict=True):
                rows[key] = row
                self._put(key, row)
        return _join([rows[key] for key in keys])

    def _get(self, key: Hashable) -> Inputs | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def _put(self, key: Hashable, row: Inputs) -> None:
        with self._lock:
            if key in self._rows or _bytes(row) > self.limit:
                return
            self._rows[key] = row
            self.size += _bytes(row)
            while self.size > self.limit:
                self.size -= _bytes(self._rows.popitem(last=False)[1])


def _bytes(row: Inputs) -> int:
    return sum(t.nbytes for t in row)


def _check(made: Any, collection: AbstractCollection, count: int) -> Inputs:
    inputs = Inputs.of(made) if isinstance(made, Inputs | Tensor | Mapping) else None
    if inputs is None or any(len(t) != count for t in inputs) or not _expected(inputs, collection):
        found = type(made).__name__ if inputs is None else _describe(inputs)
        raise ValueError(
            f"preprocess turned {count} {collection.noun} into {found}; expected {collection.expected}, "
            "such as the preprocess of a loaded backbone returns"
        )
    if MASK in inputs and (inputs[MASK][:, 1:] > inputs[MASK][:, :-1]).any():
        raise ValueError(
            'preprocess pads at the left; set tokenizer.padding_side = "right": positions count from there'
        )
    return inputs


def _expected(inputs: Inputs, collection: AbstractCollection) -> bool:
    return inputs.finished or collection.accepts(inputs)


def _describe(inputs: Inputs) -> str:
    shapes = {name: f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for name, t in inputs.tensors.items()}
    return ", ".join(f"{name}: {shape}" for name, shape in shapes.items()) if inputs.named else shapes[""]


def _split(inputs: Inputs) -> list[Inputs]:
    """One example each, without its padding. Copies: a view would keep the whole batch alive after its neighbours."""
    if MASK not in inputs:
        return [inputs.map(lambda t, i=i: t[i].detach().clone()) for i in range(inputs.count)]
    lengths = inputs[MASK].sum(1).tolist()
    return [inputs.map(lambda t, i=i, n=n: t[i, :n].detach().clone()) for i, n in enumerate(lengths)]


def _join(rows: Sequence[Inputs]) -> Inputs:
    join = (lambda parts: pad_sequence(parts, batch_first=True)) if MASK in rows[0] else torch.stack
    return Inputs({name: join([row[name] for row in rows]) for name in rows[0].tensors})
