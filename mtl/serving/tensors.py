"""The tensors of an adapted task: held once where several tasks have the same, written to disk and read again."""

from __future__ import annotations

import hashlib
import threading
import uuid
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtl.fewshot import AdaptedTask


class Interned:
    """One tensor for all that are equal, as long as somebody holds it: tasks often share their statistics."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[tuple[Any, ...], Tensor] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def one(self, name: str, value: Tensor) -> Tensor:
        """The tensor that is held already, or this one."""
        del name
        value = value.detach().contiguous()
        content = hashlib.sha256(value.cpu().view(torch.uint8).numpy().data).digest()
        with self._lock:
            return self._known.setdefault((value.device, value.dtype, value.shape, content), value)


def spilled(task: AdaptedTask, folder: Path) -> Path:
    """Write the tensors of a task to a file of their own."""
    state = {name: value.cpu().clone() for name, value in task.tensors.items()}  # each in memory of its own
    path = folder / uuid.uuid4().hex
    save_file(state, path)
    return path


def outline(task: AdaptedTask) -> AdaptedTask:
    """The task without the contents of its tensors, each of which is left with its device alone."""
    return task.map_tensors(lambda _, value: value.new_empty(0))


def restored(outline: AdaptedTask, path: Path) -> AdaptedTask:
    """The task again, from its outline and the file of its tensors."""
    state = load_file(path)
    return outline.map_tensors(lambda name, empty: state[name].to(empty.device))
