"""From items as people have them, each with the task that it is for, to logits."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

from mtl.episode import Inputs
from mtl.fewshot import AdaptedTask
from mtl.items import ItemError
from mtl.networks.backbones import Backbone
from mtl.serving.finishing import Finish
from mtl.serving.library import Entry, TaskLibrary
from mtl.serving.mixed import Answers, Question, mixed_answers


class Asked(NamedTuple):
    """An item, and the task that is asked about it."""

    item: Any
    entry: Entry


class Request(NamedTuple):
    """A single question, and the form of its answer."""

    asked: Asked
    finish: Finish[Any]


def answer_each(backbone: Backbone, library: TaskLibrary, requests: Sequence[Request]) -> list[Any]:
    """The answer to each request, or the exception that is about it alone."""
    found: list[Any] = [None] * len(requests)
    left = list(range(len(requests)))
    while left:
        try:
            answers = ask_items(backbone, library, [requests[i].asked for i in left])
        except FailedQuestion as error:
            found[left.pop(error.place)] = error.cause
            continue
        for of_task in answers:
            for i, place in enumerate(of_task.places):
                found[left[place]] = _finished(of_task, i, requests[left[place]].finish)
        break
    return found


def _finished(answers: Answers, i: int, finish: Finish[Any]) -> Any:
    """One of the answers in its form, or what is wrong with that."""
    try:
        return finish(Answers(answers.task, [0], answers.logits[i : i + 1]))[0]
    except ValueError as error:
        return error


class FailedQuestion(Exception):
    """What is wrong with one question, and with no other.

    Args:
        place: of the question, from 0.
        cause: the error to show.
    """

    def __init__(self, place: int, cause: Exception) -> None:
        super().__init__(place, cause)
        self.place, self.cause = place, cause


def ask_items(backbone: Backbone, library: TaskLibrary, asked: Sequence[Asked]) -> list[Answers]:
    """Preprocess each item once, also one that several tasks are asked about, and answer.

    Raises:
        FailedQuestion: an item cannot be read, a task cannot be loaded, or an answer is not finite.
    """
    items, examples = _different([question.item for question in asked])
    try:
        inputs = _preprocessed(backbone, items)
    except ItemError as error:
        raise FailedQuestion(examples.index(error.place), error) from error
    return ask_inputs(backbone, library, inputs, examples, [question.entry for question in asked])


def ask_inputs(
    backbone: Backbone, library: TaskLibrary, inputs: Inputs, examples: Sequence[int], entries: Sequence[Entry]
) -> list[Answers]:
    """Answers about preprocessed inputs.

    Args:
        inputs: ``(n, ...)``.
        examples: of each question, its place among the inputs.
        entries: of each question, its task.

    Raises:
        FailedQuestion: a task cannot be loaded, or an answer is not finite.
    """
    tasks: dict[Entry, AdaptedTask] = {}
    for place, entry in enumerate(entries):
        if entry not in tasks:
            try:
                tasks[entry] = library.task_of(entry)
            except (OSError, ValueError) as error:
                raise FailedQuestion(place, error) from error
    questions = [Question(example, tasks[entry]) for example, entry in zip(examples, entries, strict=True)]
    answers = list(mixed_answers(backbone, inputs, questions))
    for answer in answers:
        _check_finite(answer, inputs, examples, backbone)
    return answers


def _different(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Each item once, and for every given one its place among these."""
    places: dict[Any, int] = {}
    found = []
    for item in items:
        key = item if isinstance(item, str | PathLike) else id(item)
        if key not in places:
            places[key] = len(found)
            found.append(item)
    return found, [places[item if isinstance(item, str | PathLike) else id(item)] for item in items]


def _preprocessed(backbone: Backbone, items: Sequence[Any]) -> Inputs:
    """``(n, ...)``; whatever is wrong with one item alone is an :class:`ItemError` of that item."""
    try:
        return Inputs.of(backbone.preprocess(items))
    except ItemError:
        raise
    except Exception as error:
        if len(items) == 1:
            raise ItemError(0, str(error)) from error
        for place, item in enumerate(items):
            try:
                _preprocessed(backbone, [item])
            except ItemError as own:
                raise ItemError(place, own.why) from error
        raise


def _check_finite(answers: Answers, inputs: Inputs, examples: Sequence[int], backbone: Backbone) -> None:
    finite = answers.logits.isfinite().all(1)
    if bool(finite.all()):
        return
    place = answers.places[int((~finite).nonzero()[0])]
    example = examples[place]
    if all(bool(t[example].isfinite().all()) for t in inputs):
        way_out = "run it in bfloat16 or float32" if backbone.low_precision else "check its weights"
        why = f"{backbone.name} makes NaN or infinity of it, though it is finite; {way_out}"
    else:
        why = "it holds NaN or infinity; leave it out"
    raise FailedQuestion(place, ItemError(place, why))
