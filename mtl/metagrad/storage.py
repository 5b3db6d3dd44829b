r"""Storage of inner-loop states until the backward sweep: on the device that made them, in the host's memory, or not.

Estimators store the weights, the optimiser state and the gradient of every inner step. For scale and shift vectors that
is next to nothing, but it comes as thousands of small tensors, and one small tensor between two freed activations keeps
an allocator from giving the memory around it back: a loop over 150 tensors that needs 40 MiB grew a process by 700. So
every kind of state lies in one contiguous buffer that is there before the first step, with a row for each step.

Where all weights of a network are adapted it is three networks per step, often more than the graph of one step, and
each is read once, from the last step to the first: they can wait in main memory (:class:`OnHost`), or be computed again
from every :math:`\sqrt K`-th (:class:`Regrouped`).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from mtl.metagrad.tensors import Tensors


class AbstractRows(abc.ABC):
    """Room for vectors of one length, a row for each."""

    @abc.abstractmethod
    def write(self, row: int, values: list[Tensor]) -> None:
        """Fill a row with the tensors, one after the other."""

    @abc.abstractmethod
    def read(self, row: int) -> Tensor:
        """The row ``(length,)``: the same numbers, on the device they came from."""


class StateStorage(abc.ABC):
    """Stores the states of the inner loop and fetches them again."""

    @property
    def every(self) -> int | None:
        """Steps between stored ones; None where all of them are stored, 0 for the square root of the steps."""
        return None

    @abc.abstractmethod
    def rows(self, count: int, like: Tensor) -> AbstractRows:
        """Room for ``count`` vectors of that length, dtype and device."""


class _DeviceRows(AbstractRows):
    def __init__(self, buffer: Tensor) -> None:
        # Each with a version of its own, or a graph that holds one row would take writing the next for a change of it.
        self._rows = [row.data for row in buffer.unbind()]

    def write(self, row: int, values: list[Tensor]) -> None:
        torch.cat([v.reshape(-1) for v in values], out=self._rows[row])

    def read(self, row: int) -> Tensor:
        return self._rows[row]


class _HostRows(AbstractRows):
    def __init__(self, buffer: Tensor, device: torch.device) -> None:
        self._rows, self._device = buffer.unbind(), device

    def write(self, row: int, values: list[Tensor]) -> None:
        # The stream orders this copy before the one that brings it back. Where memory is not page-locked, it waits.
        self._rows[row].copy_(_flatten_dense_tensors(values), non_blocking=self._rows[row].is_pinned())

    def read(self, row: int) -> Tensor:
        return self._rows[row].to(self._device, non_blocking=True)


@dataclass(frozen=True)
class OnDevice(StateStorage):
    """On the device that the states came from."""

    def rows(self, count: int, like: Tensor) -> AbstractRows:
        return _DeviceRows(like.new_empty((count, *like.shape)))


@dataclass(frozen=True)
class OnHost(StateStorage):
    """In the host's memory, page-locked so that the device never waits for a copy; fetched step by step.

    Memory on the device is then flat in the number of inner steps even where whole networks are adapted. On a CPU it is
    the same as :class:`OnDevice`.
    """

    def rows(self, count: int, like: Tensor) -> AbstractRows:
        if like.device.type == "cpu":
            return OnDevice().rows(count, like)
        shape, page_locked = (count, *like.shape), like.device.type == "cuda"
        buffer = torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=page_locked)
        return _HostRows(buffer, like.device)


@dataclass(frozen=True)
class Regrouped(StateStorage):
    r"""Only every :math:`\sqrt K`-th step's states; those between are computed again on the way back.

    At most two groups are there at a time, so the memory for states grows with :math:`\sqrt K`. The price is one more
    gradient per inner step. For fast weights of the size of a network; arXiv 1604.06174 is the idea.

    Args:
        storage: where the stored steps are.
        steps: in a group; 0 for about the square root of the number of steps.

    Raises:
        ValueError: when ``steps`` is negative, or the storage is regrouped already.
    """

    storage: StateStorage = field(default_factory=OnDevice)
    steps: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"Regrouped(steps={self.steps}): expected 0, for the square root of all steps, or more")
        if self.storage.every is not None:
            raise ValueError("Regrouped(storage=Regrouped(...)): expected a storage that stores what it is given")

    @property
    def every(self) -> int:
        return self.steps

    def rows(self, count: int, like: Tensor) -> AbstractRows:
        return self.storage.rows(count, like)


class AbstractSteps(Sequence[Tensors]):
    """Named tensors of consecutive steps, looked up one by one."""

    @abc.abstractmethod
    def at(self, step: int) -> Tensors:
        """Those of one step, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | list[Tensors]:
        places = range(len(self))[index]
        return [self.at(step) for step in places] if isinstance(places, range) else self.at(places)


class StoredStates(AbstractSteps):
    """A growing list of named tensors of the same names and shapes, in buffers made for all of them at once.

    Args:
        storage: where the buffers are.
        count: how many different items there will be.
    """

    def __init__(self, storage: StateStorage, count: int) -> None:
        self._storage, self._count = storage, count
        self._layout: _Layout | None = None
        self._rows: list[AbstractRows] = []
        self._own: dict[int, Tensors] = {}  # items of another layout, as they are
        self._length = 0

    def append(self, item: Tensors) -> None:
        """Add an item."""
        place, self._length = self._length, self._length + 1
        if self._layout is None:
            self._layout = _Layout(item)
            self._rows = [self._storage.rows(self._count, like) for like in self._layout.vectors()]
        if not self._layout.fits(item):
            self._own[place] = item
            return
        for rows, values in zip(self._rows, self._layout.grouped(item), strict=True):
            rows.write(place, values)

    def __len__(self) -> int:
        return self._length

    def at(self, step: int) -> Tensors:
        if step in self._own:
            return self._own[step]
        assert self._layout is not None
        return self._layout.named([rows.read(step) for rows in self._rows])


class _Layout:
    """How named tensors lie one after the other, in one vector for each dtype and device."""

    def __init__(self, item: Tensors) -> None:
        self._shapes = _shapes(item)
        groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name, value in item.items():
            groups.setdefault((value.dtype, value.device), []).append(name)
        self._groups = list(groups.values())
        self._empty = [item[names[0]].new_empty(0) for names in self._groups]
        # Shapes alone, in the form that the C++ function takes.
        self._like = [[torch.empty(item[n].shape, device="meta") for n in names] for names in self._groups]

    def vectors(self) -> list[Tensor]:
        """A tensor of the length, dtype and device of each vector, without memory of its own."""
        lengths = [sum(v.numel() for v in like) for like in self._like]
        return [e.new_empty(1).expand(n) if n else e for e, n in zip(self._empty, lengths, strict=True)]

    def fits(self, item: Tensors) -> bool:
        return _shapes(item) == self._shapes

    def grouped(self, item: Tensors) -> list[list[Tensor]]:
        return [[item[name] for name in names] for names in self._groups]

    def named(self, vectors: list[Tensor]) -> Tensors:
        """Views of the vectors, by name, in the order of the first item."""
        found: Tensors = {}
        for names, like, vector in zip(self._groups, self._like, vectors, strict=True):
            found |= zip(names, _unflatten_dense_tensors(vector, like), strict=True)
        return found if len(self._groups) == 1 else {name: found[name] for name in self._shapes}


def _shapes(item: Tensors) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (v.shape, v.dtype, v.device) for name, v in item.items()}
