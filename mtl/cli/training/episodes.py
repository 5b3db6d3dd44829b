"""Test episodes to look at, with what a learner says of their queries."""

from __future__ import annotations

from collections.abc import Iterator

import mtl
from mtl.episode import Episode, Readable
from mtl.tools.episodes import ShownEpisode

SHOWN = 4
LOOKED_AT = 40  # episodes among which kinds of tasks are looked for


def shown_episodes(learner: mtl.MetaLearner, tasks: Readable, count: int = SHOWN) -> list[ShownEpisode]:
    """The first episode of each of several kinds of tasks, then further ones."""
    return [_shown(learner, tasks, index, episode) for index, episode in _of_each_kind(tasks, count)]


def _of_each_kind(tasks: Readable, count: int) -> Iterator[tuple[int, Episode]]:
    end = tasks.episodes if isinstance(tasks, mtl.data.EvaluationTasks) else LOOKED_AT
    kinds, others = {}, []
    for index in range(min(end, LOOKED_AT)):
        episode = tasks.sample(index)
        if episode.families in kinds:
            others.append((index, episode))
        else:
            kinds[episode.families] = index, episode
        if len(kinds) == count:
            break
    yield from [*kinds.values(), *others][:count]


def _shown(learner: mtl.MetaLearner, tasks: Readable, index: int, episode: Episode) -> ShownEpisode:
    names, support, queries = tasks.read(index)
    found = learner.adapt(episode.support, calibrate=True).predict_proba(episode.query.inputs)[0]
    labels = (side.labels[0].cpu().numpy() for side in (episode.support, episode.query))
    family = (episode.families or ("episode",))[0]
    support_labels, query_labels = labels
    return ShownEpisode(
        family, tuple(names), support, support_labels, queries, query_labels, found.detach().cpu().float().numpy()
    )
