"""Many adapted tasks over one frozen network: mixed batches, tasks that come and go, single requests gathered."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot import Adapted, AdaptedTask
from mtl.fewshot.predicting import Prediction
from mtl.fewshot.raw_items import batched
from mtl.items import as_items
from mtl.networks.backbones import Backbone
from mtl.serving import finishing
from mtl.serving.addressing import Addressed, in_order, placed
from mtl.serving.asking import Asked, Request, answer_each, ask_inputs, ask_items
from mtl.serving.finishing import Finish
from mtl.serving.gathering import Gatherer
from mtl.serving.library import TaskLibrary
from mtl.serving.mixed import Answers
from mtl.serving.recognising import Recogniser

T = TypeVar("T")
ITEMS_AT_A_TIME = 256


class Server:
    """Answers for many adapted tasks over one frozen network. Threads may use it at once.

    A batch may be for as many tasks as it has items: it passes through the network once, each example under the scale
    and shift of its task, or under none where tasks are classifiers of plain features. Answers are those that each task
    would give alone, to rounding.

    >>> with mtl.Server(backbone, "tasks/") as server:  # doctest: +SKIP
    ...     server.predict(["Where is my parcel?", "I was charged twice"], tasks=["returns", "billing"])

    Args:
        backbone: the frozen network that all tasks were adapted on.
        tasks: by name, adapted or as the paths of their files; or a folder of files, such as ``tasks/returns.mtl`` for
            the task ``"returns"``, each read when it is asked for; what comes into the folder, is replaced there or
            goes counts from the next question on.
        capacity: tasks whose numbers are kept in memory, on the device of the network. Of more than these, the ones
            that were asked for longest ago are read again when they are asked for; what has no file waits in a
            temporary one.
        max_batch: single requests that are answered together, at most; see :meth:`submit`.
        max_wait: milliseconds that a single request waits for others, at most.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a file is damaged, a task is of another network, or a number is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Mapping[str, AdaptedTask | Adapted | str | Path] | str | Path | None = None,
        *,
        capacity: int = 1000,
        max_batch: int = 256,
        max_wait: float = 5.0,
    ) -> None:
        if backbone.execution.lockstep:
            raise ValueError(f"{backbone.name} is sharded over processes, which answer in step; serve it from one")
        self.backbone = backbone
        self._recogniser = Recogniser(backbone)
        self._library = TaskLibrary(self._recogniser.read, capacity)
        self._gatherer: Gatherer[Request, Any] = Gatherer(self._answer_each, max_batch, max_wait)
        if isinstance(tasks, str | os.PathLike):
            self._library.follow(Path(tasks).expanduser())
        else:
            for name, task in (tasks or {}).items():
                self.add(name, task)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def add(self, name: str, task: AdaptedTask | Adapted | str | Path) -> None:
        """Serve a task under a name, in the place of the one that has it. Requests under way finish with that one.

        Args:
            name: to ask for.
            task: adapted, or the path of its file, which has to stay where it is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or the task is of another network.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"a task named {name!r}: expected a string that is not empty")
        if isinstance(task, str | os.PathLike):
            self._library.add(name, Path(task).expanduser())
            return
        own = self._recogniser.own(name, task.task() if isinstance(task, Adapted) else task)
        self._library.add(name, own.to(self.backbone.device))

    def remove(self, name: str) -> None:
        """Serve a task no more; its file stays.

        Raises:
            UnknownTask: there is none of this name; a ``KeyError``.
        """
        self._library.remove(name)

    def read(self, path: str | Path) -> AdaptedTask:
        """The task in a file of this network, which is not served by that.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or of another network.
        """
        return self._recogniser.read(Path(path).expanduser())

    def task(self, name: str) -> AdaptedTask:
        """The task of this name, read from its file if need be.

        Raises:
            UnknownTask: there is none.
        """
        return self._library.task_of(self._library.find([name])[0])

    def __contains__(self, name: object) -> bool:
        return name in self._library

    def __len__(self) -> int:
        return len(self._library)

    def __iter__(self) -> Iterator[str]:
        """Names of the tasks, in order."""
        return iter(self._library)

    @property
    def in_memory(self) -> int:
        """How many tasks have their numbers in memory, at most the capacity."""
        return self._library.in_memory

    # --- batches -----------------------------------------------------------------------------------------------------

    def predict(
        self, items: Any, tasks: str | Iterable[str], *, reject: float | None = None, batch_size: int = ITEMS_AT_A_TIME
    ) -> list[Any]:
        """The most likely class of each item, in the task that it is for.

        Args:
            items: of any kind, see :func:`mtl.items.as_items`, such as a list of strings, images or paths; or inputs as
                the network takes them, tensors by name. To ask several tasks about an item, repeat it: the same string,
                path or object is read once.
            tasks: a name for each item, or one for all.
            reject: answer None, "none of these", where the task is too unsure, see :meth:`mtl.AdaptedTask.predict`.
            batch_size: items that are read at a time. They pass through the network in as few passes as memory allows,
                texts of like lengths together.

        Returns:
            A class name for each item, an integer where classes have no names.

        Raises:
            UnknownTask: there is no task of a name; a ``KeyError``, with names that look like it.
            ValueError: an item cannot be read, there are not as many names as items, or a task has nothing to take a
                threshold from.
        """
        return [answer.label for answer in self.predict_each(items, tasks, reject=reject, batch_size=batch_size)]

    def predict_each(
        self, items: Any, tasks: str | Iterable[str], *, reject: float | None = None, batch_size: int = ITEMS_AT_A_TIME
    ) -> Iterator[Prediction]:
        """Predictions one after the other, each with its probability; reads ``batch_size`` items ahead.

        Args:
            items, tasks, reject, batch_size: see :meth:`predict`, with what it raises.
        """
        return self._each(items, tasks, batch_size, finishing.best(reject))

    def predict_top(
        self, items: Any, tasks: str | Iterable[str], k: int = 3, *, batch_size: int = ITEMS_AT_A_TIME
    ) -> list[list[Prediction]]:
        """The ``k`` most likely classes of each item, the most likely first; all where its task has fewer.

        Args:
            items, tasks, batch_size: see :meth:`predict`, with what it raises.
        """
        return list(self._each(items, tasks, batch_size, finishing.likeliest(k)))

    def predict_proba(
        self, items: Any, tasks: str | Iterable[str], *, batch_size: int = ITEMS_AT_A_TIME
    ) -> list[Tensor]:
        """Of each item, the probabilities of its task's classes, ``(ways,)`` on the CPU.

        Args:
            items, tasks, batch_size: see :meth:`predict`, with what it raises.
        """
        return list(self._each(items, tasks, batch_size, finishing.probabilities))

    def logits(self, items: Any, tasks: str | Iterable[str], *, batch_size: int = ITEMS_AT_A_TIME) -> list[Tensor]:
        """Of each item, the logits of its task's classes, ``(ways,)`` on the CPU.

        Args:
            items, tasks, batch_size: see :meth:`predict`, with what it raises.
        """
        return list(self._each(items, tasks, batch_size, finishing.logits))

    def _each(self, items: Any, tasks: str | Iterable[str], batch_size: int, finish: Finish[T]) -> Iterator[T]:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1 item")
        addressed = Addressed.find(self._library, tasks)
        if isinstance(items, Inputs | Mapping):
            inputs = Inputs.of(items)
            batches = self._ask_inputs(inputs, addressed)
        else:
            batches = self._ask_items(as_items(items, self.backbone.adapter.reads), addressed, batch_size)
        return (answer for answers in batches for answer in in_order(answers, finish))

    def _ask_inputs(self, inputs: Inputs, addressed: Addressed) -> Iterator[list[Answers]]:
        entries = addressed.take(inputs.count)
        addressed.check_over(inputs.count)
        with placed(0):
            answers = ask_inputs(self.backbone, self._library, inputs, range(inputs.count), entries)
        yield answers

    def _ask_items(self, items: Iterable[Any], addressed: Addressed, batch_size: int) -> Iterator[list[Answers]]:
        done = 0
        for batch in batched(items, batch_size):
            asked = [Asked(*pair) for pair in zip(batch, addressed.take(len(batch)), strict=True)]
            with placed(done):
                answers = ask_items(self.backbone, self._library, asked)
            yield answers
            done += len(batch)
        addressed.check_over(done)

    # --- single requests ---------------------------------------------------------------------------------------------

    def submit(self, item: Any, task: str, *, reject: float | None = None) -> Future[Prediction]:
        """Ask about one item, and get the answer later: one thread gathers what many callers ask into mixed batches.

        Args:
            item: one image, path or text.
            task: its name.
            reject: see :meth:`predict`.

        Returns:
            A future of the most likely class and its probability, or of what is wrong with this item alone. In
            ``asyncio``: ``await asyncio.wrap_future(server.submit(item, task))``.

        Raises:
            UnknownTask: there is no task of this name.
            RuntimeError: the server is closed.
        """
        return self._submit(item, task, finishing.best(reject))

    def submit_top(self, item: Any, task: str, k: int = 3, *, reject: float | None = None) -> Future[list[Prediction]]:
        """The same for the ``k`` most likely classes, the most likely first.

        Args:
            item, task, reject: see :meth:`submit`, with what it raises.
        """
        return self._submit(item, task, finishing.likeliest(k, reject))

    def _submit(self, item: Any, task: str, finish: Finish[T]) -> Future[T]:
        return self._gatherer.submit(Request(Asked(item, self._library.find([task])[0]), finish))

    def _answer_each(self, requests: Sequence[Request]) -> list[Any]:
        return answer_each(self.backbone, self._library, requests)

    def close(self) -> None:
        """Answer what was submitted, take no more, and remove the temporary files."""
        self._gatherer.close()
        self._library.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
