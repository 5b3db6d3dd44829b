"""What is found about a network at the first use, by one thread while the others wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class once(cached_property[T]):
    """A cached property that is computed once, also when threads ask for it at once; its object has a ``_lock``.

    :class:`functools.cached_property` locks nothing since Python 3.12.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        super().__init__(compute)

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        with instance._lock:
            if self.attrname not in instance.__dict__:
                instance.__dict__[str(self.attrname)] = self.func(instance)
            return instance.__dict__[str(self.attrname)]
