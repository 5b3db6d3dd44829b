"""Every method on every episode: results are shown while they come, and can be kept from one process to the next."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from mtl.episode import Episode, TaskSource, stack_by_shape
from mtl.fewshot.baselines import Method
from mtl.fewshot.evaluation.controls import learner_method
from mtl.fewshot.evaluation.results import KeptResults, Result, Results, families_of
from mtl.fewshot.learner import MetaLearner
from mtl.tools.comparison import Comparison, MethodResult
from mtl.tools.progress import ProgressBar
from mtl.tools.reliability import Answers

WORTH_TELLING = 30.0  # seconds; an estimate of less is not printed


def evaluate(
    methods: MetaLearner | Sequence[Method],
    tasks: TaskSource,
    *,
    episodes: int = 600,
    setting: str = "test",
    reference: str | None = None,
    tasks_per_chunk: int = 8,
    progress: bool = True,
    folder: str | Path | None = None,
) -> Comparison:
    """Accuracy of every method on episodes ``0 .. episodes - 1``, the same for all.

    Args:
        methods: a learner alone, or methods from :func:`learner_method`, :func:`controls` and
            :func:`mtl.baselines`.
        setting: in tables, such as ``"5-way 1-shot"``.
        reference: the method that paired differences are taken from; the first one by default.
        tasks_per_chunk: most tasks in one forward pass; chunks are nearly equal in size.
        progress: show which method is at work and how many tasks are done; and after the first chunk how long each
            method will take, if it is half a minute or more for all.
        folder: keep results there, in ``results.jsonl``. The same call goes on where it stopped, and returns at once
            when all is there; a kill loses what one method did on one chunk. Whatever the results depend on is
            compared: episodes, the network, the weights of a learner, settings of a method. A method of your own is
            kept if it has an ``identity``.

    Raises:
        ValueError: fewer than one episode, no method, two methods of one name, or a reference that is none of them.
        FolderInUse: another process compares in the folder.
        OSError: a result could not be written to the folder.
    """
    methods = [learner_method(methods)] if isinstance(methods, MetaLearner) else list(methods)
    _check(methods, episodes, tasks_per_chunk, reference)
    results = Results() if folder is None else KeptResults(Path(folder), methods, tasks, setting)
    chunks = _chunks(episodes, tasks_per_chunk)
    if _open_chunks(methods, chunks, results):
        with results.hold(), _told_what_is_kept(methods, chunks, results):
            if isinstance(results, KeptResults):
                results.tidy()
            _compare(methods, tasks, chunks, results, setting, progress)
    _warn_of_missing({m.name: sum(r.missing for r in _all(results, m, chunks)) for m in methods}, episodes)
    families = {i: f for r in _all(results, methods[0], chunks) for i, f in zip(r.tasks, r.families, strict=True)}
    rows = tuple(_row(m, _all(results, m, chunks), episodes) for m in methods)
    return Comparison(setting, tuple(families[i] for i in range(episodes)), rows, reference or methods[0].name)


def _open_chunks(methods: Sequence[Method], chunks: Sequence[list[int]], results: Results) -> list[list[int]]:
    """The chunks that some method is not through with."""
    return [chunk for chunk in chunks if not all(results.complete(m, chunk) for m in methods)]


def _compare(
    methods: Sequence[Method],
    tasks: TaskSource,
    chunks: Sequence[list[int]],
    results: Results,
    setting: str,
    progress: bool,
) -> None:
    """Fill in the results that are not there yet, method by method within a chunk: they share what features cost."""
    todo = _open_chunks(methods, chunks, results)
    total, left = sum(map(len, chunks)), sum(map(len, todo))
    with ProgressBar(total=total, initial=total - left, desc=setting, unit="task", show=progress) as bar:
        for i, chunk in enumerate(todo):
            begun, spent = time.perf_counter(), {}
            groups = [([chunk[p] for p in ps], e) for ps, e in stack_by_shape([tasks.sample(i) for i in chunk])]
            for at, episode in groups:
                working = [m for m in methods if tuple(at) not in [r.tasks for r in results.of(m, chunk)]]
                inner = ProgressBar(working, unit="method", leave=False, delay=0.5, show=progress)
                for method in inner:
                    inner.set_description(method.name)
                    start = time.perf_counter()
                    results.add(method, _result(method, chunk, at, episode))
                    spent[method.name] = spent.get(method.name, 0.0) + time.perf_counter() - start
            bar.update(len(chunk))
            left -= len(chunk)
            if i == 0 and progress:
                _tell_estimate(spent, time.perf_counter() - begun, left / len(chunk), f"{setting}, {left} tasks left")


def _result(method: Method, chunk: Sequence[int], at: Sequence[int], episode: Episode) -> Result:
    start = time.perf_counter() + method.shared_seconds()
    predicted, confidence = method.answers(episode)
    predicted = predicted.cpu()
    seconds = time.perf_counter() + method.shared_seconds() - start
    _check_shape(method, predicted, episode.query.labels)
    missing = int((predicted < 0).any(1).sum())
    right = predicted == episode.query.labels
    accuracy = tuple(right.float().mean(1).tolist())
    answers = None if confidence is None else Answers(tuple(confidence.cpu().numpy()), tuple(right.numpy()))
    chunks = (chunk[0], chunk[-1])
    return Result(chunks, tuple(at), families_of(episode), episode.ways, accuracy, seconds, missing, answers)


def _tell_estimate(spent: Mapping[str, float], seconds: float, times: float, what: str) -> None:
    """How long each method will take, judged by the first chunk, the longest first."""
    if seconds * times < WORTH_TELLING:
        return
    longest = sorted(spent, key=lambda name: -spent[name])
    lines = [f"{what}: about {_clock(seconds * times)} in all"]
    lines += [f"{_clock(spent[name] * times):>9}  {name}" for name in longest]
    ProgressBar.write("\n".join(lines))


def _clock(seconds: float) -> str:
    return ProgressBar.format_interval(seconds)


@contextmanager
def _told_what_is_kept(methods: Sequence[Method], chunks: Sequence[list[int]], results: Results) -> Iterator[None]:
    """Add to whatever ends a comparison early, Ctrl-C too, what is kept of it."""
    try:
        yield
    except BaseException as error:
        if results.file is not None:
            done, total = sum(results.complete(m, c) for m in methods for c in chunks), len(methods) * len(chunks)
            kept = f"{results.file} holds {done / total:.0%} of this comparison's results"
            error.add_note(f"{kept}: the same command continues from there")
        raise


def _all(results: Results, method: Method, chunks: Sequence[list[int]]) -> list[Result]:
    return [result for chunk in chunks for result in results.of(method, chunk)]


def _row(method: Method, results: Sequence[Result], episodes: int) -> MethodResult:
    accuracy = np.full(episodes, np.nan)
    for result in results:
        accuracy[list(result.tasks)] = result.accuracy
    seconds, ways = sum(r.seconds for r in results) / episodes, max(r.ways for r in results)
    values, answers = method.adapted_values(ways), Answers.joined([r.answers for r in results])
    if answers is not None:
        answers = answers.of_episodes(np.argsort([i for r in results for i in r.tasks]))
    return MethodResult(method.name, method.kind, accuracy, seconds, values, method.tuned, answers)


def _check(methods: Sequence[Method], episodes: int, tasks_per_chunk: int, reference: str | None) -> None:
    """Refuse now what :class:`mtl.tools.comparison.Comparison` would refuse after the computation."""
    if episodes < 1 or tasks_per_chunk < 1 or not methods:
        given = f"episodes={episodes}, tasks_per_chunk={tasks_per_chunk}"
        raise ValueError(f"evaluate({given}) with {len(methods)} methods: expected at least one of each")
    names = [m.name for m in methods]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"evaluate: two methods are called {repeated}; results are stored by name, so rename one")
    if reference is not None and reference not in names:
        raise ValueError(f"evaluate(reference={reference!r}): expected one of {names}")


def _check_shape(method: Method, predicted: Tensor, labels: Tensor) -> None:
    # The comparison would broadcast, and a wrong shape would become a wrong accuracy.
    if predicted.shape != labels.shape:
        expected = f"expected (tasks, queries) {tuple(labels.shape)}"
        raise ValueError(f"{method.name!r} predicted {tuple(predicted.shape)} labels; {expected}")


def _warn_of_missing(missing: Mapping[str, int], episodes: int) -> None:
    for name, count in missing.items():
        if count:
            why = "are not finite, and count as wrong; look for NaN in the data, or lower the inner step size"
            warnings.warn(f"{name!r}: answers in {count} of {episodes} episodes {why}", stacklevel=3)


def _chunks(episodes: int, size: int) -> list[list[int]]:
    """Nearly equal chunks of at most ``size``, so that no task is alone in the last: controls need another one."""
    return [part.tolist() for part in np.array_split(np.arange(episodes), -(-episodes // size))]
