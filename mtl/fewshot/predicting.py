"""Answers for items of one task, whatever holds the task: class names, probabilities, one by one or all at once."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.raw_items import ITEMS_PER_PASS


class Prediction(NamedTuple):
    """The most likely class of an item, by its name or else its number, and its probability."""

    label: Any
    probability: float


class AbstractPredictor(abc.ABC):
    """One task, asked about items as people have them.

    Attributes:
        class_names: in the order of the logits; empty where classes are numbered.
        ways: number of classes.
    """

    class_names: tuple[str, ...]
    ways: int

    @abc.abstractmethod
    def _batches(self, items: Any, batch_size: int, progress: bool) -> Iterator[Inputs]:
        """Items as inputs ``(1, n, ...)``, so many at a time."""

    @abc.abstractmethod
    def _finite_logits(self, inputs: Inputs) -> Tensor:
        """Logits ``(n, ways)`` of inputs ``(1, n, ...)``.

        Raises:
            ValueError: one of them is not finite.
        """

    def predict(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Any:
        """The most likely class of each item.

        Args:
            inputs: of any kind, see :func:`mtl.items.as_items`: images, paths, a folder, strings, a generator of a
                million of them.
            batch_size: items that are read and pass through the network at a time.
            progress: show a bar, if items take longer than a moment.

        Returns:
            A list of class names, one each, also of a single item; integers where classes have no names.

        Raises:
            ValueError: something is not finite, or an item cannot be read.
        """
        return [answer.label for answer in self._each(inputs, batch_size, progress)]

    def predict_each(self, items: Any, *, batch_size: int = ITEMS_PER_PASS) -> Iterator[Prediction]:
        """Predictions one after the other, each with its probability; reads no more than ``batch_size`` items ahead.

        >>> for name, probability in adapted.predict_each(paths): print(name, probability)  # doctest: +SKIP

        Raises:
            ValueError: see :meth:`predict`.
        """
        return self._each(items, batch_size, progress=False)

    def predict_proba(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Tensor:
        """The probability of every class, ``(n, ways)`` on the CPU.

        Args:
            inputs, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        batches = self._batches(inputs, batch_size, progress)
        found = [self._finite_logits(batch).softmax(-1).cpu() for batch in batches]
        return torch.cat(found) if found else torch.zeros(0, self.ways)

    def _each(self, items: Any, batch_size: int, progress: bool) -> Iterator[Prediction]:
        batches = self._batches(items, batch_size, progress)
        return (answer for batch in batches for answer in self._answers(self._finite_logits(batch)))

    def _answers(self, logits: Tensor) -> Iterator[Prediction]:
        probabilities, classes = logits.softmax(-1).max(-1)
        for i, probability in zip(classes.tolist(), probabilities.tolist(), strict=True):
            yield Prediction(self.class_names[i] if self.class_names else i, probability)
