"""Single requests of many callers, answered together: one thread gathers them into batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class _Request(Generic[Q, A]):
    question: Q
    future: Future[A] = field(default_factory=Future)


class Gatherer(Generic[Q, A]):
    """Answers questions in batches, in a thread that starts with the first question.

    Whatever comes in while a batch is computed makes up the next one, so a busy server waits for nobody.

    Args:
        answer: of a batch of questions; for each its answer, or the exception that belongs to it. Raises what belongs
            to all of them.
        max_batch: questions that are answered together, at most.
        max_wait: milliseconds that the first question of a batch waits for others.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]], max_batch: int, max_wait: float
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: expected at least 1 item")
        if not 0 <= max_wait < float("inf"):
            raise ValueError(f"max_wait={max_wait}: expected milliseconds, 0 or more")
        self._answer, self._max_batch, self._max_wait = answer, max_batch, max_wait / 1000
        self._waiting: queue.SimpleQueue[_Request[Q, A] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, question: Q) -> Future[A]:
        """The answer that is to come.

        Raises:
            RuntimeError: closed.
        """
        request: _Request[Q, A] = _Request(question)
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is closed and takes no more requests; open a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mtl.Server", daemon=True)
                self._thread.start()
            self._waiting.put(request)
        return request.future

    def close(self) -> None:
        """Take no more questions, and return when all that were taken are answered."""
        with self._lock:
            thread, first = self._thread, not self._closed
            self._closed = True
            if first:
                self._waiting.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = self._gathered(first)
            _settle(batch, self._answer)
            if last:
                return

    def _gathered(self, first: _Request[Q, A]) -> tuple[list[_Request[Q, A]], bool]:
        """A batch, and whether it is the last one."""
        batch, deadline = [first], time.monotonic() + self._max_wait
        while len(batch) < self._max_batch:
            try:
                # What waits already is taken at once, also when the time is over.
                request = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                return batch, True
            batch.append(request)
        return batch, False


def _settle(batch: Sequence[_Request[Q, A]], answer: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
    """Answer those that nobody has cancelled."""
    batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
    if not batch:
        return
    try:
        answers: Sequence[Any] = answer([request.question for request in batch])
    except Exception as error:
        answers = [error] * len(batch)
    for request, found in zip(batch, answers, strict=True):
        if isinstance(found, Exception):
            request.future.set_exception(found)
        else:
            request.future.set_result(found)
