"""Preprocessed examples, kept in memory as long as they fit, or on disk."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtl.data.own.collection import AbstractCollection
from mtl.data.own.ranges import at_least
from mtl.data.own.row_store import RowStore
from mtl.episode import PREFIX, Identified, Inputs, RawInputs
from mtl.tools.identity import describe_inputs
from mtl.tools.progress import ProgressBar

MASK = "attention_mask"
Preprocess = Callable[[list[Any]], Inputs | RawInputs]
"""``n`` raw examples to a tensor ``(n, ...)`` or to tensors by name, each ``(n, ...)``, without randomness: such as the
``preprocess`` of a loaded backbone. Texts of unequal length have an ``attention_mask`` that is zero on padding."""


class InputCache:
    """Preprocesses examples, and keeps the recently used ones in memory. Task sources and threads may share one.

    With a folder it keeps all of them on disk, for later epochs, runs and other processes::

        cache = mtl.data.InputCache(backbone.precompute, folder="cache", version=backbone.cache_key())
        cache.fill(collection)

    Args:
        preprocess: see :data:`Preprocess`. With the ``precompute`` of a loaded backbone each example also goes through
            the frozen layers below the first site only once, and with a backbone without sites through all of them.
        limit: bytes of memory, at least 0; the least recently used examples go first, and 0 keeps none. Examples on
            disk do not count: their files are mapped into memory.
        folder: where examples are kept on disk. Whatever is in it may be deleted while nothing runs.
        version: tells networks and ways of preprocessing apart that share the folder; needed with one.

    Raises:
        ValueError: a limit below 0, or a folder without a version.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        limit: int = 2 << 30,
        *,
        folder: str | Path | None = None,
        version: str | None = None,
    ) -> None:
        if folder is not None and not version:
            raise ValueError(f"folder={str(folder)!r} needs a version; expected one such as backbone.cache_key()")
        self.preprocess = preprocess
        self.limit = at_least(0, "cache_bytes", limit)
        self.size = 0
        self.folder, self.version = folder, version
        self._store = None if folder is None else RowStore(Path(folder) / digest_of(version))
        self._rows: OrderedDict[Hashable, Inputs] = OrderedDict()
        self._names: dict[Hashable, str | None] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., InputCache], tuple[Preprocess, int, str | Path | None, str | None]]:
        # what goes to a loader worker is an empty cache, not gigabytes of examples (and a lock cannot be pickled)
        return _again, (self.preprocess, self.limit, self.folder, self.version)

    def __call__(self, collection: AbstractCollection, positions: Sequence[int]) -> Inputs:
        """Inputs ``(n, ...)`` of the examples at these positions; texts are padded to the longest of them.

        Raises:
            ValueError: preprocessing makes something else of them than the collection expects.
            OSError: the folder cannot be written to.
        """
        keys = [collection.key(position) for position in positions]
        rows = {key: row for key in keys if (row := self._get(key)) is not None}
        missing = {key: position for key, position in zip(keys, positions, strict=True) if key not in rows}
        rows |= self._stored(collection, missing)
        missing = {key: position for key, position in missing.items() if key not in rows}
        if missing:
            items = collection.read(list(missing.values()))
            made = _split(_check(self.preprocess(items), collection, len(items)))
            for (key, position), row in zip(missing.items(), made, strict=True):
                rows[key] = row
                name = self._name(collection, key, position)
                if self._store is None or name is None:
                    self._put(key, row)
                else:
                    self._store.put(name, row)
        return _join([rows[key] for key in keys])

    def fill(self, collection: AbstractCollection, *, examples_per_batch: int = 64, progress: bool = True) -> int:
        """Preprocess every example that is not there yet, and write what is new to the folder.

        Best before training: workers of a data loader may lose the last 64 MB of what they preprocess themselves.

        Args:
            examples_per_batch: that are preprocessed at once.
            progress: show a bar.

        Returns:
            How many were preprocessed.
        """
        positions = {collection.key(p): p for members in collection.items.values() for p in members}
        here = self._stored_keys(collection, positions) | self._rows.keys()
        missing = [position for key, position in positions.items() if key not in here]
        with ProgressBar(total=len(missing), unit=collection.noun, desc=collection.source, show=progress) as bar:
            for start in range(0, len(missing), examples_per_batch):
                chunk = missing[start : start + examples_per_batch]
                self(collection, chunk)
                bar.update(len(chunk))
        self.flush()
        return len(missing)

    def flush(self) -> None:
        """Write to the folder what still waits in memory; otherwise that happens by files of 64 MB and at the end."""
        if self._store is not None:
            self._store.flush()

    def identity(self, collection: AbstractCollection) -> dict[str, Any]:
        """What tells this preprocessing from others; see :class:`~mtl.episode.Identified`.

        The identity of the preprocessing, or of the object whose method it is; or else the version; or else what it
        makes of some examples. Where preprocessed examples are kept does not count.

        Args:
            collection: has the examples that are preprocessed.
        """
        owner = getattr(self.preprocess, "__self__", None)  # of a bound method
        if isinstance(self.preprocess, Identified):
            return self.preprocess.identity()
        if isinstance(owner, Identified):
            return {"method": self.preprocess.__name__} | owner.identity()  # pyright: ignore[reportFunctionMemberAccess]
        if self.version is not None:
            return {"version": self.version}
        return describe_inputs(self(collection, _some(collection)))

    def _stored(self, collection: AbstractCollection, positions: Mapping[Hashable, int]) -> dict[Hashable, Inputs]:
        if self._store is None:
            return {}
        names = {key: name for key, p in positions.items() if (name := self._name(collection, key, p)) is not None}
        rows = self._store.get(list(names.values()))
        return {key: rows[name] for key, name in names.items() if name in rows}

    def _stored_keys(self, collection: AbstractCollection, positions: Mapping[Hashable, int]) -> set[Hashable]:
        if self._store is None:
            return set()
        names = {key: name for key, p in positions.items() if (name := self._name(collection, key, p)) is not None}
        missing = self._store.missing(list(names.values()))
        return {key for key, name in names.items() if name not in missing}

    def _name(self, collection: AbstractCollection, key: Hashable, position: int) -> str | None:
        """In the store; None for an example that another run could not recognise."""
        if self._store is None:
            return None
        if key not in self._names:
            identity = collection.identity_of_example(position)
            self._names[key] = None if identity is None else digest_of(identity)
        return self._names[key]

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


def _some(collection: AbstractCollection) -> list[int]:
    """Positions of some examples of different classes, and of the longest text, which a shorter limit would cut."""
    first = [places[0] for places in collection.items.values()][:4]
    texts = [p for places in collection.items.values() for p in places] if collection.noun == "texts" else []
    longest = sorted(texts, key=lambda p: -len(str(collection.identity_of_example(p))))[:4]
    return list(dict.fromkeys([*first, *longest]))


def digest_of(text: str | None) -> str:
    """A name of 32 letters for a text of any length."""
    return hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _again(preprocess: Preprocess, limit: int, folder: str | Path | None, version: str | None) -> InputCache:
    return InputCache(preprocess, limit, folder=folder, version=version)


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
    return inputs.computed or collection.accepts(
        Inputs({k: t for k, t in inputs.tensors.items() if not _by_example(k)})
    )


def _by_example(name: str) -> bool:
    """Whether a tensor next to tokens has no token axis: ``prefix.levels`` of a backbone."""
    return name != PREFIX and Inputs.of_prefix(name)


def _describe(inputs: Inputs) -> str:
    shapes = {name: f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for name, t in inputs.tensors.items()}
    return ", ".join(f"{name}: {shape}" for name, shape in shapes.items()) if inputs.named else shapes[""]


def _split(inputs: Inputs) -> list[Inputs]:
    """One example each, without its padding. Copies: a view would keep the whole batch alive after its neighbours."""
    if MASK not in inputs:
        return [inputs.map(lambda t, i=i: t[i].detach().clone()) for i in range(inputs.count)]
    lengths = inputs[MASK].sum(1).tolist()
    return [_example(inputs, i, n) for i, n in enumerate(lengths)]


def _example(inputs: Inputs, i: int, length: int) -> Inputs:
    rows = {k: t[i] if _by_example(k) else t[i, :length] for k, t in inputs.tensors.items()}
    return Inputs(rows).map(lambda t: t.detach().clone())


def _join(rows: Sequence[Inputs]) -> Inputs:
    join = (lambda parts: pad_sequence(parts, batch_first=True)) if MASK in rows[0] else torch.stack
    return Inputs({name: join([row[name] for row in rows]) for name in rows[0].tensors})
