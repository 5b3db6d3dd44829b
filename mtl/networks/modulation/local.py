"""Values that hold for the calls of one thread, and locks that copy: so that many threads may call one network."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Frame(NamedTuple):
    owner: CallLocal[Any]
    value: Any
    outer: _Frame | None


class _Frames(threading.local):
    top: _Frame | None = None


_FRAMES = _Frames()


class CallLocal(Generic[T]):
    """A value that is set for the calls inside a ``with`` block, and that no other thread sees.

    A copy, pickled or not, has the default, and nothing of what is set.

    It is kept by thread rather than in a :class:`contextvars.ContextVar`, because ``torch.compile`` cannot trace that
    one is set. Nothing awaits inside these blocks, so the tasks of ``asyncio`` are kept apart as well.
    """

    def __init__(self, default: T) -> None:
        self.default = default

    def get(self) -> T:
        """The value of the innermost block of this thread."""
        frame = _FRAMES.top
        while frame is not None:
            if frame.owner is self:
                return frame.value
            frame = frame.outer
        return self.default

    def set_to(self, value: T) -> AbstractContextManager[None]:
        """A block in which this thread sees the value; it may be entered again, also while entered, in any thread."""
        return _Setting(self, value)


class _Setting(AbstractContextManager[None]):
    # A class, not a generator: the backward pass enters it again, in threads of its own.
    def __init__(self, local: CallLocal[Any], value: Any) -> None:
        self._local, self._value = local, value

    def __enter__(self) -> None:
        _FRAMES.top = _Frame(self._local, self._value, _FRAMES.top)

    def __exit__(self, *exception: object) -> None:
        assert _FRAMES.top is not None
        _FRAMES.top = _FRAMES.top.outer


class CopyableLock(AbstractContextManager[None]):
    """A lock that its holder may take again, and that is free in every copy, pickle and forked process."""

    def __init__(self) -> None:
        self.renew()
        _LOCKS.add(self)

    def renew(self) -> None:
        """Free it: a forked process has none of the threads that may have held it."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[CopyableLock], tuple[()]]:
        return CopyableLock, ()


_LOCKS: weakref.WeakSet[CopyableLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _LOCKS:
        lock.renew()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_all)
