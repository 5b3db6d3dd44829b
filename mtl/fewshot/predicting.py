"""Answers for items of one task, whatever holds the task: class names, probabilities, one by one or all at once."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.calibration import Calibration
from mtl.fewshot.raw_items import ITEMS_PER_PASS


def threshold(calibration: Calibration | None, reject: float) -> float:
    """The probability below which an answer is rejected, see :meth:`Calibration.threshold`."""
    if calibration is None:
        way_out = "adapt with cross_validate=True or calibrate=True"
        raise ValueError(f"reject={reject}: no examples were left out to take a threshold from; {way_out}")
    return calibration.threshold(reject)


class Prediction(NamedTuple):
    """The most likely class of an item, by its name or else its number, and its probability.

    The label is None where the item was rejected as "none of these".
    """

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

    @property
    @abc.abstractmethod
    def _calibration(self) -> Calibration | None:
        """Of the one task, where left-out examples were asked for."""

    @abc.abstractmethod
    def _batches(self, items: Any, batch_size: int, progress: bool) -> Iterator[Inputs]:
        """Items as inputs ``(1, n, ...)``, so many at a time."""

    @abc.abstractmethod
    def _finite_logits(self, inputs: Inputs) -> Tensor:
        """Logits ``(n, ways)`` of inputs ``(1, n, ...)``.

        Raises:
            ValueError: one of them is not finite.
        """

    def predict(
        self,
        inputs: Any,
        *,
        reject: float | None = None,
        batch_size: int = ITEMS_PER_PASS,
        progress: bool = True,
    ) -> Any:
        """The most likely class of each item.

        Args:
            inputs: of any kind, see :func:`mtl.items.as_items`: images, paths, a folder, strings, a generator of a
                million of them.
            reject: answer None, "none of these", where the probability is lower than that of the least sure 10 % of the
                left-out examples, for 0.1. About so many, or fewer, of the items that do belong to a class are lost by
                it. See :meth:`mtl.fewshot.Calibration.threshold`. None: every item gets a class.
            batch_size: items that are read and pass through the network at a time.
            progress: show a bar, if items take longer than a moment.

        Returns:
            A list of class names, one each, also of a single item; integers where classes have no names.

        Raises:
            ValueError: something is not finite, an item cannot be read, or there is nothing to take a threshold from.
        """
        least = self._threshold(reject)
        return [answer.label for answer in self._each(inputs, least, batch_size, progress)]

    def predict_each(
        self, items: Any, *, reject: float | None = None, batch_size: int = ITEMS_PER_PASS
    ) -> Iterator[Prediction]:
        """Predictions one after the other, each with its probability; reads no more than ``batch_size`` items ahead.

        >>> for name, probability in adapted.predict_each(paths): print(name, probability)  # doctest: +SKIP

        Args:
            items, reject, batch_size: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        return self._each(items, self._threshold(reject), batch_size, progress=False)

    def predict_top(
        self, items: Any, k: int = 3, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True
    ) -> list[list[Prediction]]:
        """The ``k`` most likely classes of each item, the most likely first; all where there are fewer.

        Args:
            items, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`; or k is less than one.
        """
        if k < 1:
            raise ValueError(f"predict_top(k={k}): expected at least 1")
        return [
            answers for logits in self._logits_of(items, batch_size, progress) for answers in self.likeliest(logits, k)
        ]

    def likeliest(self, logits: Tensor, k: int = 1, least: float = 0.0) -> list[list[Prediction]]:
        """The ``k`` most likely classes by logits ``(n, ways)``, the most likely first; all where there are fewer.

        Args:
            least: the label of the first is None where it is less likely than this.
        """
        k = min(k, self.ways)
        # The order is that of the logits.
        classes = logits.argmax(-1, keepdim=True) if k == 1 else logits.topk(k, -1).indices
        chances = self.probabilities(logits).gather(-1, classes)
        found = []
        for row, own in zip(classes.tolist(), chances.tolist(), strict=True):
            first, *others = (Prediction(self._name(i), p) for i, p in zip(row, own, strict=True))
            found.append([first if first.probability >= least else first._replace(label=None), *others])
        return found

    def predict_proba(self, inputs: Any, *, batch_size: int = ITEMS_PER_PASS, progress: bool = True) -> Tensor:
        """The probability of every class, ``(n, ways)`` on the CPU.

        After :meth:`MetaLearner.adapt` with ``cross_validate`` or ``calibrate`` logits are divided by the temperature
        that fits the left-out examples.

        Args:
            inputs, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        found = [self.probabilities(logits).cpu() for logits in self._logits_of(inputs, batch_size, progress)]
        return torch.cat(found) if found else torch.zeros(0, self.ways)

    def predict_rows(
        self, items: Any, *, reject: float | None = None, batch_size: int = ITEMS_PER_PASS, progress: bool = True
    ) -> Iterator[dict[str, Any]]:
        """One row of a table per item: ``label``, ``probability``, and ``p(class)`` of every class.

        The label of a rejected item is None, which is an empty cell of a csv file.

        Args:
            items, reject, batch_size, progress: see :meth:`predict`.

        Raises:
            ValueError: see :meth:`predict`.
        """
        least = self._threshold(reject)
        columns = [f"p({self._name(i)})" for i in range(self.ways)]
        for logits in self._logits_of(items, batch_size, progress):
            chances = (round(p, 6) for p in self.probabilities(logits).flatten().tolist())
            for answer in self._answers(logits, least):
                row = {"label": answer.label, "probability": round(answer.probability, 6)}
                yield row | dict(zip(columns, chances, strict=False))

    def _threshold(self, reject: float | None) -> float:
        return 0.0 if reject is None else threshold(self._calibration, reject)

    def _each(self, items: Any, least: float, batch_size: int, progress: bool) -> Iterator[Prediction]:
        batches = self._logits_of(items, batch_size, progress)
        return (answer for logits in batches for answer in self._answers(logits, least))

    def _logits_of(self, items: Any, batch_size: int, progress: bool) -> Iterator[Tensor]:
        return map(self._finite_logits, self._batches(items, batch_size, progress))

    def _answers(self, logits: Tensor, least: float = 0.0) -> Iterator[Prediction]:
        return (first for [first] in self.likeliest(logits, 1, least))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits ``(n, ways)`` as the probabilities that other methods give, at the temperature of the task."""
        return logits.softmax(-1) if self._calibration is None else self._calibration.probabilities(logits)

    def _name(self, i: int) -> Any:
        return self.class_names[i] if self.class_names else i
