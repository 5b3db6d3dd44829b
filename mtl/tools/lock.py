"""One run at a time in a folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mtl.tools.files import explain_write_errors

LOCK, HOLDER = "run.lock", "run.lock.json"  # the first stays: others may be about to ask for it
PATIENCE = 10.0  # seconds that the last workers of a killed process get to notice it, and to let go
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_held: set[tuple[int, int, Path]] = set()  # by process and thread


class FolderInUse(OSError):
    """Another process, or another thread of this one, works in the folder."""


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder while something is written there. It is made if it is not there.

    The operating system releases the lock of a process that is killed. A thread that holds the folder may ask for it
    again. Of several processes that work together, such as those of one ``accelerate launch``, the main one asks.

    Raises:
        FolderInUse: somebody else holds it; the message names the process, its host, and since when.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    key = (os.getpid(), threading.get_ident(), folder.resolve())
    if key in _held:
        yield
        return
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder)
    _held.add(key)
    try:
        if lock is not None:
            _sign(folder / HOLDER)
        yield
    finally:
        _held.discard(key)
        if lock is not None:
            (folder / HOLDER).unlink(missing_ok=True)
            lock.release()


def _acquire(folder: Path) -> FileLock | None:
    """The lock; None, with a warning, on a file system that has no locks."""
    lock, end = FileLock(folder / LOCK), time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            holder = _holder(folder / HOLDER)
            if not _ended(holder) or time.monotonic() > end:
                raise FolderInUse(_in_use(folder, holder)) from None
            time.sleep(0.1)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                with explain_write_errors(folder / LOCK):
                    raise
            warnings.warn(f"the file system of {folder} has no locks: see that no other run uses it", stacklevel=4)
            return None


def _sign(path: Path) -> None:
    signature = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with explain_write_errors(path):
        path.write_text(json.dumps(signature))


def _holder(path: Path) -> dict[str, Any]:
    """Who holds the lock; empty where that is not written yet, or no longer."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ended(holder: dict[str, Any]) -> bool:
    """Whether the process that signed is one of this host that is no more, or nobody signed."""
    if not holder:
        return True
    if holder.get("host") != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError):
        return False
    return False


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    who = "process {pid} on {host}, since {since}".format_map(holder) if len(holder) == 3 else "another process"
    if holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname():
        who = f"another thread of this process, since {holder['since']}"
    return f"{folder} is in use by {who}; wait until it ends, or choose another folder"
