"""Preprocessed examples, kept as long as they fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

Row = Tensor | dict[str, Tensor]
"""One example: a tensor, or tensors by name."""


class RowCache:
    """Least recently used rows by key, bounded in bytes. Prefetching threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._held: OrderedDict[Hashable, Row] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RowCache], tuple[int]]:
        # what goes to a loader worker is an empty cache, not gigabytes of examples (and a lock cannot be pickled)
        return RowCache, (self.limit,)

    def get(self, key: Hashable) -> Row | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, row: Row) -> None:
        with self._lock:
            if key in self._held or _bytes(row) > self.limit:
                return
            self._held[key] = row
            self.size += _bytes(row)
            while self.size > self.limit:
                self.size -= _bytes(self._held.popitem(last=False)[1])


def _bytes(row: Row) -> int:
    return sum(t.nbytes for t in row.values()) if isinstance(row, dict) else row.nbytes
