"""Rows of tensors in a folder: written once, mapped into memory when read, shared by processes and runs."""

from __future__ import annotations

import os
import re
import threading
import uuid
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtl.episode import Inputs
from mtl.tools.files import atomic_write, explain_write_errors

SHARD_BYTES = 64 << 20
SHARD_ROWS = 4096
_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")  # other files in the folder are not of this store


class RowStore:
    """Examples by name, in safetensors files that are never changed. Threads and processes may share a folder.

    New rows wait in memory until they fill a file, until :meth:`flush`, or until the store is no longer needed. Every
    process writes files of its own, and finds the others' when it looks for a row that it does not have.

    Args:
        folder: made if it is not there.
        shard_bytes: of rows that fill a file.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shard_bytes = folder, shard_bytes
        self._waiting_bytes = 0
        self._shards: dict[str, _Shard] = {}
        self._place: dict[str, _Shard] = {}
        self._waiting: dict[str, Inputs] = {}
        self._lock = threading.Lock()
        # also when the interpreter ends; a forked worker leaves its parent's rows to the parent
        self._close = weakref.finalize(self, _write_waiting, folder, self._waiting, os.getpid())

    def get(self, names: Sequence[str]) -> dict[str, Inputs]:
        """Those of the rows that are there, each without a leading axis."""
        with self._lock:
            if not self._has(names):
                self._look_for_shards()
            found = {name: row for name in names if (row := self._waiting.get(name)) is not None}
            return found | {name: self._place[name].row(name) for name in names if name in self._place}

    def missing(self, names: Sequence[str]) -> set[str]:
        """Those of the rows that are not there."""
        with self._lock:
            self._look_for_shards()
            return {name for name in names if not self._has([name])}

    def put(self, name: str, row: Inputs) -> None:
        """Add a row. One that is already there stays.

        Raises:
            OSError: it could not be written; the message says why.
        """
        with self._lock:
            if self._has([name]):
                return
            self._waiting[name] = row
            self._waiting_bytes += sum(t.nbytes for t in row)
            if self._waiting_bytes >= self.shard_bytes or len(self._waiting) >= SHARD_ROWS:
                self._flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        _write_waiting(self.folder, self._waiting, os.getpid())
        self._waiting_bytes = 0
        self._look_for_shards()

    def _has(self, names: Sequence[str]) -> bool:
        return all(name in self._waiting or name in self._place for name in names)

    def _look_for_shards(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._shards or not _NAME.fullmatch(path.name):
                continue
            try:
                shard = self._shards[path.name] = _Shard(path)
            except OSError as error:  # of the disk, which may read it later
                warnings.warn(f"{path} cannot be read ({error}); its examples are computed again", stacklevel=4)
                continue
            except (SafetensorError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}); removed, its examples are computed again", stacklevel=4)
                path.unlink(missing_ok=True)
                continue
            self._place |= dict.fromkeys(shard.rows, shard)


class _Shard:
    """One file, mapped into memory. Its tensors are named ``row/name of the tensor``."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self.rows: dict[str, list[str]] = {}
        for key in self._file.keys():  # noqa: SIM118 (not a dict)
            row, _, name = key.partition("/")
            self.rows.setdefault(row, []).append(name)

    def row(self, row: str) -> Inputs:
        return Inputs({name: self._file.get_tensor(f"{row}/{name}") for name in self.rows[row]})


def _write_waiting(folder: Path, waiting: dict[str, Inputs], process: int) -> None:
    """Move the rows into a new file; in another process than the one that holds them nothing happens."""
    if not waiting or os.getpid() != process:
        return
    path = folder / f"{uuid.uuid4().hex}.safetensors"
    tensors: Mapping[str, Tensor] = {
        f"{row}/{name}": t.contiguous() for row, inputs in waiting.items() for name, t in inputs.tensors.items()
    }
    with explain_write_errors(path, sum(t.nbytes for t in tensors.values())), atomic_write(path) as draft:
        save_file(dict(tensors), draft)
    waiting.clear()
