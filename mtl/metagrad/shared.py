"""Settings of the whole process that several threads may need at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch


class SharedSetting:
    """A setting of the process: the first thread that needs it makes it, the last one gives it back.

    Each on its own would give back what another one had set.

    Args:
        setting: a context manager that makes the setting.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting = setting
        self._lock, self._users, self._made = threading.Lock(), 0, ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which the setting holds."""
        if torch.compiler.is_compiling():  # a lock cannot be traced, and need not be: the trace is this thread's
            with self._setting():
                yield
            return
        with self._lock:
            if not self._users:
                self._made.enter_context(self._setting())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._made.close()
