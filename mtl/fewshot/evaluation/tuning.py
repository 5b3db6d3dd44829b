"""Settings of baselines, chosen on validation tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mtl.episode import TaskSource
from mtl.fewshot.baselines import BASELINES, Baseline, Method, Setup, Value, make_methods, usable
from mtl.fewshot.evaluation.comparing import evaluate
from mtl.fewshot.statistics import FeatureStatistics
from mtl.networks.backbones import Backbone
from mtl.tools.comparison import mean_interval


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
    candidates: Mapping[str, Mapping[Value, Method]],
    tasks: TaskSource,
    episodes: int,
    size: int,
    progress: bool,
    folder: str | Path | None = None,
) -> dict[str, dict[Value, float]]:
    """Mean accuracy on the first episodes of every candidate of every row."""
    named = {(key, v): replace(m, name=f"{key} {v}") for key, row in candidates.items() for v, m in row.items()}
    found = evaluate(
        list(named.values()),
        tasks,
        episodes=episodes,
        tasks_per_chunk=size,
        setting="tuning",
        progress=progress,
        folder=folder,
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
    folder: str | Path | None = None,
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
        folder: keep results there, and go on with them; see :func:`mtl.evaluate`.

    Returns:
        The methods, and the chosen settings by name; each method's ``tuned`` shows its own in the table.
    """
    setup = Setup(backbone, steps, statistics)
    rows = [row for row in usable(table, setup).values() if row.grid]
    candidates = {row.setting: {v: row.method(setup, v) for v in row.candidates(setup)} for row in rows}
    scores = _scores(candidates, tasks, episodes, tasks_per_chunk, True, folder) if candidates else {}
    best = {setting: max(row, key=row.__getitem__) for setting, row in scores.items()}
    return make_methods(table, setup, best), best
