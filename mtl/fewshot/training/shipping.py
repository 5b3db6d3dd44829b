"""Task sources on their way to the processes that prepare episodes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch.multiprocessing
from torch import Tensor, nn
from torch.utils.data import Dataset

from mtl.episode import Episode, TaskSource


def check_shipping(tasks: TaskSource, workers: int) -> None:
    """Refuse a task source that cannot go to so many processes, before any of them starts.

    Raises:
        ValueError: saying what stays behind, and what to use in its place.
    """
    if not workers or torch.multiprocessing.get_context().get_start_method() == "fork":
        return
    try:
        _Rehearsal(_Nowhere()).dump(tasks)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise ValueError(
            f"workers={workers}: this {type(tasks).__name__} cannot go to other processes ({e}); give it functions of "
            "a module, such as backbone.preprocess and backbone.precompute, or prepare episodes here with workers=0"
        ) from e


class Episodes(Dataset[Episode]):
    """Episodes of a source by index. A copy for another process holds all its tensors in main memory."""

    def __init__(self, tasks: TaskSource) -> None:
        self.tasks = tasks

    def __getitem__(self, index: int) -> Episode:
        return self.tasks.sample(index)

    def __reduce__(self) -> tuple[Callable[[bytes], Episodes], tuple[bytes]]:
        packed = io.BytesIO()
        _ToMainMemory(packed).dump(self.tasks)
        return _unpacked, (packed.getvalue(),)


def _unpacked(packed: bytes) -> Episodes:
    return Episodes(pickle.loads(packed))


class _ToMainMemory(pickle.Pickler):
    """Takes tensors from whatever device: a process that prepares episodes has no use for a GPU."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor) or obj.device.type == "cpu":
            return NotImplemented
        value = obj.detach().cpu()
        if isinstance(obj, nn.Parameter):
            value = nn.Parameter(value, obj.requires_grad)
        return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


class _Rehearsal(pickle.Pickler):
    """Finds what cannot be pickled, without the work for tensors."""

    def reducer_override(self, obj: Any) -> Any:
        return (int, ()) if isinstance(obj, Tensor) else NotImplemented


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)
