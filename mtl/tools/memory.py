"""Counting the bytes of tensors that are alive, on any device and with fake tensors too."""

from __future__ import annotations

import abc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watching(TorchDispatchMode, abc.ABC):
    """Sees every operation that is carried out inside: of forwards, of backwards, of recomputations."""

    @abc.abstractmethod
    def saw(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """An operation, its arguments and what it returned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls; the long way takes a sixth of the time
        found = func(*args, **(kwargs := kwargs or {}))
        self.saw(func, args, kwargs, found)
        return found


class LiveBytes(Watching):
    """Peak bytes of storages that operations return inside, whoever holds them. A process's peak would show what ran
    before, too.

    What a kernel allocates for itself while it runs, and what an allocator rounds up or keeps for later, comes on top.

    Args:
        known: tensors whose storages do not count. A view, such as a transposed weight, is returned with the storage of
            what it views.

    Attributes:
        now: bytes of the storages alive.
        peak: the most that ``now`` has been.

    >>> with LiveBytes() as counter:
    ...     kept = torch.zeros(256) + 1
    >>> counter.now, counter.peak
    (1024, 2048)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known = [t.untyped_storage() for t in known]  # held, or their addresses could be used again
        self._alive: set[int] = {s._cdata for s in self._known}

    def saw(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        for tensor in _tensors(found):
            self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _tensors(found: Any) -> Iterable[Tensor]:
    if isinstance(found, Tensor):
        return (found,)
    if isinstance(found, torch.device | bool | int):  # fake tensors ask for these more often than for anything else
        return ()
    return (v for v in tree_leaves(found) if isinstance(v, Tensor))


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors, each storage once.

    >>> weight = torch.zeros(10)
    >>> stored_bytes([weight, weight[2:]])
    40
    """
    storages = [t.untyped_storage() for t in tensors]
    return sum({s._cdata: s.nbytes() for s in storages}.values())
