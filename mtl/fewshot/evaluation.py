"""Compare methods on the same episodes: a learner, controls that show whether it really adapts, and baselines."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mtl.episode import Episode, TaskSource, stack_by_shape
from mtl.fewshot.baselines import BASELINES, Baseline, Method, Setup, Value, make_methods, usable
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.model import most_likely
from mtl.fewshot.statistics import FeatureStatistics
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone
from mtl.tools.comparison import Comparison, Kind, MethodResult, mean_interval


def evaluate(
    methods: MetaLearner | Sequence[Method],
    tasks: TaskSource,
    *,
    episodes: int = 600,
    setting: str = "test",
    reference: str | None = None,
    tasks_per_chunk: int = 8,
    progress: bool = True,
) -> Comparison:
    """Accuracy of every method on episodes ``0 .. episodes - 1``, the same for all.

    Args:
        methods: a learner alone, or methods from :func:`learner_method`, :func:`controls` and
            :func:`mtl.baselines`.
        reference: the method that paired differences are taken from; the first one by default.
        tasks_per_chunk: most tasks in one forward pass; chunks are nearly equal in size.
        progress: show a progress bar.

    Raises:
        ValueError: fewer than one episode, no method, two methods of one name, or a reference that is none of them.
    """
    methods = [learner_method(methods)] if isinstance(methods, MetaLearner) else list(methods)
    _check(methods, episodes, tasks_per_chunk, reference)
    accuracy = {m.name: np.full(episodes, np.nan) for m in methods}
    seconds, missing = dict.fromkeys(accuracy, 0.0), dict.fromkeys(accuracy, 0)
    families: list[str] = [""] * episodes
    ways = 0
    for indices in tqdm(_chunks(episodes, tasks_per_chunk), desc=setting, unit="chunk", disable=not progress):
        for places, episode in stack_by_shape([tasks.sample(i) for i in indices]):
            at = [indices[p] for p in places]
            for i, family in zip(at, _families(episode), strict=True):
                families[i] = family
            ways = max(ways, episode.ways)
            for method in methods:
                start = time.perf_counter() + method.shared_seconds()
                predicted = method(episode).cpu()
                seconds[method.name] += time.perf_counter() + method.shared_seconds() - start
                _check_shape(method, predicted, episode.query.labels)
                missing[method.name] += int((predicted < 0).any(1).sum())
                accuracy[method.name][at] = (predicted == episode.query.labels).float().mean(1).numpy()
    _warn_of_missing(missing, episodes)
    rows = [
        MethodResult(m.name, m.kind, accuracy[m.name], seconds[m.name] / episodes, m.adapted_values(ways), m.tuned)
        for m in methods
    ]
    return Comparison(setting, tuple(families), tuple(rows), reference or methods[0].name)


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


def _families(episode: Episode) -> tuple[str, ...]:
    """The families of an episode; they are all one family where the source names none."""
    return episode.families or ("tasks",) * episode.tasks


def learner_method(
    learner: MetaLearner, name: str = "generator", steps: int | None = None, cross_validate: bool = False
) -> Method:
    """The learner as a method, by default with the inner steps that it was trained with.

    Args:
        cross_validate: see :meth:`MetaLearner.adapt`.
    """
    return _method(learner, name, "ours", None, steps, cross_validate)


def static_control(learner: MetaLearner, steps: int | None = None) -> Method:
    """A learner with a static generator: the control that conditioning has to beat."""
    return replace(learner_method(learner, "static modulation", steps), kind="control")


def controls(learner: MetaLearner, steps: int | None = None) -> list[Method]:
    """The same learner with its generator misled. The inner loop and the head always get the right support set.

    - another task's support: of a random other task of the chunk, of any family or of the same one. A task whose family
      has no second task in the chunk gets one of another family, so with many families or small chunks the two controls
      hardly differ (raise ``tasks_per_chunk``);
    - shuffled labels: the right examples with permuted labels, so that other examples share a class. With one example
      per class there is nothing to shuffle, and a generator that ignores the numbering of classes sees no difference;
    - identity: scale one and shift zero, with the step sizes that the generator emits.
    """
    emitters = {
        "another task's support": _emit_for_another_task,
        "another task's, same family": _emit_for_same_family,
        "shuffled labels": _emit_for_shuffled_labels,
        "identity": lambda learner, episode: learner.generator.identity(_emit(learner, episode)),
    }
    return [_method(learner, name, "control", emit, steps) for name, emit in emitters.items()]


Emit = Callable[[MetaLearner, Episode], Tensors]


def _method(
    learner: MetaLearner, name: str, kind: Kind, emit: Emit | None, steps: int | None, cross_validate: bool = False
) -> Method:
    """Adapt and predict; without ``emit``, from what the generator emits for the support set."""

    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        episode = episode.to(learner.device)
        meta = None if emit is None else emit(learner, episode)
        adapted = learner.adapt(episode.support, steps=steps, meta=meta, cross_validate=cross_validate)
        return most_likely(adapted.logits(episode.query.inputs))

    shown = learner.inner_steps if steps is None else steps
    name = f"{name}, {shown} step{'' if shown == 1 else 's'}"
    return Method(name, predict, learner.model.adapted_values, kind)


def _emit(learner: MetaLearner, episode: Episode) -> Tensors:
    return learner.generator(learner.view(episode.support, ways=episode.ways))


def _emit_for(learner: MetaLearner, episode: Episode, chosen: Tensor) -> Tensors:
    return _emit(learner, Episode(episode.support.map(lambda v: v[chosen.to(v.device)]), episode.query, episode.ways))


def _emit_for_another_task(learner: MetaLearner, episode: Episode) -> Tensors:
    _require_two(episode)
    shift = torch.randint(1, episode.tasks, (episode.tasks,), generator=torch.Generator().manual_seed(episode.tasks))
    return _emit_for(learner, episode, (torch.arange(episode.tasks) + shift) % episode.tasks)


def _emit_for_same_family(learner: MetaLearner, episode: Episode) -> Tensors:
    _require_two(episode)
    families = _families(episode)
    members = {f: [t for t, g in enumerate(families) if g == f] for f in dict.fromkeys(families)}
    following = {t: tasks[(i + 1) % len(tasks)] for tasks in members.values() for i, t in enumerate(tasks)}
    # A task that is alone of its family in the chunk gets its neighbour's support, never its own.
    following = {t: u if u != t else (t + 1) % episode.tasks for t, u in following.items()}
    return _emit_for(learner, episode, torch.tensor([following[t] for t in range(episode.tasks)]))


def _emit_for_shuffled_labels(learner: MetaLearner, episode: Episode) -> Tensors:
    view = learner.view(episode.support, ways=episode.ways)
    return learner.generator(replace(view, labels=_shuffle(episode.support.labels)))


def _shuffle(labels: Tensor, draws: int = 100) -> Tensor:
    """Labels ``(tasks, n)`` in another order, drawn again where the order only renumbers the classes."""
    before, shuffled = labels.unsqueeze(1) == labels.unsqueeze(2), labels
    for seed in range(draws):
        order = torch.randperm(labels.shape[1], generator=torch.Generator().manual_seed(seed)).to(labels.device)
        shuffled = labels[:, order]
        if ((shuffled.unsqueeze(1) == shuffled.unsqueeze(2)) != before).flatten(1).any(1).all():
            break
    return shuffled


def _require_two(episode: Episode) -> None:
    if episode.tasks < 2:
        raise ValueError("a chunk of one task holds no other task's support; raise tasks_per_chunk or episodes")


def tune(
    candidates: Mapping[Value, Method], tasks: TaskSource, episodes: int = 40, tasks_per_chunk: int = 8
) -> tuple[Value, dict[Value, float]]:
    """The setting with the best accuracy on *validation* episodes, and the accuracy of each.

    All candidates see an episode before the next is drawn, so that they share what it costs to make.

    Raises:
        ValueError: without candidates.
    """
    if not candidates:
        raise ValueError("tune: no candidates; give {setting: method}, a few settings a factor of three apart")
    [scores] = _scores({"": candidates}, tasks, episodes, tasks_per_chunk, progress=False).values()
    return max(scores, key=scores.__getitem__), scores


def _scores(
    candidates: Mapping[str, Mapping[Value, Method]], tasks: TaskSource, episodes: int, size: int, progress: bool
) -> dict[str, dict[Value, float]]:
    """Mean accuracy on the first episodes of every candidate of every row."""
    named = {(key, v): replace(m, name=f"{key} {v}") for key, row in candidates.items() for v, m in row.items()}
    found = evaluate(
        list(named.values()), tasks, episodes=episodes, tasks_per_chunk=size, setting="tuning", progress=progress
    )
    mean = {row.method: mean_interval(row.accuracy)[0] for row in found.rows}
    return {key: {v: mean[named[key, v].name] for v in row} for key, row in candidates.items()}


def tune_baselines(
    backbone: Backbone,
    tasks: TaskSource,
    *,
    table: Mapping[str, Baseline] = BASELINES,
    episodes: int = 40,
    steps: int = 50,
    statistics: FeatureStatistics | None = None,
    tasks_per_chunk: int = 8,
) -> tuple[list[Method], dict[str, Value]]:
    """The baselines, each at its best setting on *validation* tasks. Untuned baselines make unfair comparisons.

    Args:
        tasks: validation tasks of the ways and shots that will be tested.
        table: which baselines, see :func:`mtl.fewshot.choose_baselines`.
        episodes: per candidate setting.
        steps: gradient steps of the fine-tuned ones.
        statistics: of features of *training* tasks; with them, the rows on the last level also try standardised
            features, and those on all levels are better at one shot.
        tasks_per_chunk: most tasks in one forward pass.

    Returns:
        The methods, and the chosen settings by name; each method's ``tuned`` shows its own in the table.
    """
    setup = Setup(backbone, steps, statistics)
    rows = [row for row in usable(table, setup).values() if row.grid]
    candidates = {row.setting: {v: row.method(setup, v) for v in row.candidates(setup)} for row in rows}
    scores = _scores(candidates, tasks, episodes, tasks_per_chunk, progress=True) if candidates else {}
    best = {setting: max(row, key=row.__getitem__) for setting, row in scores.items()}
    return make_methods(table, setup, best), best
