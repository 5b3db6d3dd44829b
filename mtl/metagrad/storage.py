"""Storage of inner-loop states until the backward sweep: on the device that made them, or in the host's memory.

Estimators store the weights, the optimiser state and the gradient of every inner step. For scale and shift vectors that
is next to nothing. Where all weights of a network are adapted it is three networks per step, often more than the graph
of one step, and each is read once, from the last step to the first: they can wait in main memory.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from mtl.metagrad.tensors import Tensors


class StateStorage(abc.ABC):
    """Stores named tensors and fetches them again: the same numbers, on the device they came from."""

    @abc.abstractmethod
    def put(self, tensors: Tensors) -> Any:
        """Anything that :meth:`fetch` understands."""

    @abc.abstractmethod
    def fetch(self, kept: Any) -> Tensors:
        """The tensors again, on their device."""


@dataclass(frozen=True)
class OnDevice(StateStorage):
    """The tensors themselves: nothing is copied."""

    def put(self, tensors: Tensors) -> Any:
        return tensors

    def fetch(self, kept: Any) -> Tensors:
        return kept


@dataclass(frozen=True)
class OnHost(StateStorage):
    """Copies in the host's memory, page-locked so that the device never waits for one; fetched tensor by tensor.

    Memory on the device is then flat in the number of inner steps even where whole networks are adapted. On a CPU
    nothing is copied.
    """

    def put(self, tensors: Tensors) -> Any:
        return {k: (v.device, _on_host(v)) for k, v in tensors.items()}

    def fetch(self, kept: Any) -> Tensors:
        return {k: v.to(device, non_blocking=True) for k, (device, v) in kept.items()}


def _on_host(value: Tensor) -> Tensor:
    if value.device.type == "cpu":
        return value
    page_locked = value.device.type == "cuda"
    host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=page_locked)
    # The stream orders this copy before the one that brings it back. Where memory is not page-locked, it waits itself.
    return host.copy_(value, non_blocking=page_locked)


class StoredStates(Sequence[Tensors]):
    """A growing list of named tensors, each put into a storage."""

    def __init__(self, storage: StateStorage, items: Iterable[Tensors] = ()) -> None:
        self._storage = storage
        self._items = [storage.put(item) for item in items]

    def append(self, item: Tensors) -> None:
        self._items.append(self._storage.put(item))

    def repeat(self) -> None:
        """Append the last item once more, without another copy."""
        self._items.append(self._items[-1])

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | list[Tensors]:
        if isinstance(index, slice):
            return [self._storage.fetch(item) for item in self._items[index]]
        return self._storage.fetch(self._items[index])
