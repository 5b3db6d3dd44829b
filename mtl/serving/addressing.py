"""Which task each item of a stream is for, and answers in the order of the items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mtl.items import ItemError
from mtl.serving.asking import FailedQuestion
from mtl.serving.library import Entry, TaskLibrary
from mtl.serving.mixed import Answers

T = TypeVar("T")


class Addressed:
    """The tasks of items that come one after the other: one for all, or one for each.

    Args:
        entries: one for each; or a single one.
    """

    def __init__(self, entries: Sequence[Entry] | Entry) -> None:
        self._entries, self._taken = entries, 0

    @staticmethod
    def find(library: TaskLibrary, tasks: str | Iterable[str]) -> Addressed:
        """The tasks as they are now.

        Raises:
            UnknownTask: there is none of a name.
        """
        return Addressed(library.find([tasks])[0] if isinstance(tasks, str) else library.find(tasks))

    def take(self, count: int) -> list[Entry]:
        """Of the next items.

        Raises:
            ValueError: there are no more.
        """
        begin, self._taken = self._taken, self._taken + count
        if isinstance(self._entries, Entry):
            return [self._entries] * count
        if self._taken > len(self._entries):
            raise ValueError(f"{len(self._entries)} names of tasks for more items; {_WAY_OUT}")
        return list(self._entries[begin : self._taken])

    def check_over(self, count: int) -> None:
        """Refuse names that are left.

        Args:
            count: of all items.
        """
        if not isinstance(self._entries, Entry) and len(self._entries) != count:
            raise ValueError(f"{len(self._entries)} names of tasks for {count} items; {_WAY_OUT}")


_WAY_OUT = "give tasks= a name for each item, or one name for all"


@contextmanager
def placed(start: int) -> Iterator[None]:
    """Errors of one question name its item by its place among all.

    Args:
        start: items before this batch.
    """
    try:
        yield
    except FailedQuestion as error:
        cause = error.cause
        raise (ItemError(start + error.place, cause.why) if isinstance(cause, ItemError) else cause) from error


def in_order(answers: Sequence[Answers], finish: Callable[[Answers], Iterable[T]]) -> list[T]:
    """What ``finish`` makes of the answers of each task, in the order of the questions."""
    found: dict[int, Any] = {}
    for of_task in answers:
        found.update(zip(of_task.places, finish(of_task), strict=True))
    return [found[place] for place in range(len(found))]
