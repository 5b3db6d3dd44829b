"""Count the bytes of live tensors, on any device and with fake tensors too."""

from __future__ import annotations

import abc
import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves


class AbstractTellingMode(TorchDispatchMode, abc.ABC):
    """A mode that runs operations in its own way, and tells watchers: cheaper than a mode of each watcher above it."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[AbstractWatcher] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # wrapping each call for a compiler would take a fifth of the time

    def tell(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Tell those whose context this is."""
        for watcher in self.watchers:
            watcher.watch(func, args, kwargs, result)


class AbstractWatcher(TorchDispatchMode, abc.ABC):
    """Sees every operation inside its context: in forward passes, backward passes and recomputations."""

    _told_by: AbstractTellingMode | None = None

    @abc.abstractmethod
    def watch(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Called after each operation with its arguments and its result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs := kwargs or {}))
        self.watch(func, args, kwargs, result)
        return result

    def __enter__(self) -> Self:
        mode = _get_current_dispatch_mode()
        if not isinstance(mode, AbstractTellingMode):
            return super().__enter__()
        self._told_by = mode
        mode.watchers.append(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._told_by is None:
            return super().__exit__(*raised)
        self._told_by.watchers.remove(self)
        self._told_by = None


class LiveBytes(AbstractWatcher):
    """Peak bytes of the storages that operations allocate inside, whoever holds them.

    A process's peak would include what ran before. Scratch memory of kernels and the allocator's rounding and caching
    come on top.

    Args:
        known: tensors whose storages do not count. A view, such as a transposed weight, shares the storage of its base.

    Attributes:
        now: bytes of the live storages.
        peak: the largest value of ``now`` so far.

    >>> with LiveBytes() as counter:
    ...     ones = torch.zeros(256) + 1
    >>> counter.now, counter.peak
    (1024, 2048)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known = [t.untyped_storage() for t in known]  # held, or their addresses could be reused
        self._alive: set[int] = {s._cdata for s in self._known}

    def watch(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _tensors(result: Any) -> Iterable[Tensor]:
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, torch.device | bool | int):  # the most frequent results of fake tensors
        return ()
    return (v for v in tree_leaves(result) if isinstance(v, Tensor))


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Total bytes of the storages behind the tensors, each storage counted once.

    >>> weight = torch.zeros(10)
    >>> stored_bytes([weight, weight[2:]])
    40
    """
    storages = [t.untyped_storage() for t in tensors]
    return sum({s._cdata: s.nbytes() for s in storages}.values())
