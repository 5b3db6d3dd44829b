"""How right estimated affinities are: errors of the linear answers, and the groups that full training finds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

import mtl
from helpers.family_training import judge, train
from helpers.readouts import Network
from mtl.episode import Episode
from mtl.fewshot.affinity import Affinity, affinities, draw_subsets, group
from mtl.fewshot.affinity.linearising import LOGITS, SCALE, ChangedBatch
from mtl.metagrad import tensors

DISTANCES = (0.001, 0.005, 0.01)
COUNTS = (3, 4, 5)  # groups to compare, where there are as many families
RANDOM = 500  # random groups, for comparison
SHOWN = 3  # changes that linear answers are checked along
SHARE = 4  # of the families are in a subset: one of so many


@dataclass(frozen=True)
class Checks:
    """Estimates beside what training in full found.

    Args:
        changes: of the static start by some subsets: log-scale of every channel and log-size of the logits.
        episodes: that answers are compared on.
        trained, estimated: ``(subsets, families)`` losses.
        seconds: CPU time of training on all subsets in full, and of the gradients and as many estimates.
    """

    static: mtl.MetaLearner
    names: tuple[str, ...]
    subsets: Sequence[tuple[str, ...]]
    changes: Sequence[dict[str, Tensor]]
    episodes: Sequence[Episode]
    trained: np.ndarray
    estimated: np.ndarray
    seconds: tuple[float, float]

    def rows(self) -> Iterator[list[str]]:
        """Agreement of losses, affinities and groups, and time."""
        full, linear = (affinities(self.names, self.subsets, v) for v in (self.trained, self.estimated))
        off = ~np.eye(len(self.names), dtype=bool)
        centred = [v - v.mean(0) for v in (self.trained, self.estimated)]
        of_losses = _correlation(*(c.ravel() for c in centred))
        yield ["correlation of losses, each family about its mean", f"{of_losses:.2f}"]
        yield ["correlation of affinities", f"{_correlation(full[off], linear[off]):.2f}"]
        half = len(self.subsets) // 2
        halves = [affinities(self.names, self.subsets[s], self.trained[s]) for s in (slice(half), slice(half, None))]
        for method in ("spectral", "sdp"):
            for count in (c for c in COUNTS if c <= len(self.names)):
                agree = normalized_mutual_info_score(group(full, count, method), group(linear, count, method))
                ceiling = normalized_mutual_info_score(*(group(m, count, method) for m in halves))
                chance = _chance(group(full, count, method), group(linear, count, method))
                said = f"{agree:.2f}; random groups {chance:.2f}; halves of the trained subsets {ceiling:.2f}"
                yield [f"NMI of {count} groups with those of full training, {method}", said]
        trained, estimated = self.seconds
        yield ["CPU time of estimates over full training", f"{estimated / trained:.3f}, 1 to {trained / estimated:.0f}"]


def compare_with_training(
    network: Network, tasks: mtl.data.FamilyTasks, static: mtl.MetaLearner, found: Affinity, config: Any
) -> Checks:
    """Train on random subsets in full, from the static start, and estimate the same ones."""
    names = found.names
    subsets = draw_subsets(names, config.subsets, max(2, round(len(names) / SHARE)) + 1, config.seed)
    judged = {n: [tasks.sources[n].sample(i) for i in range(1, config.episodes, 2)] for n in names}
    start, changes, losses = static.generator.state_dict(), list[dict[str, Tensor]](), []
    began = time.process_time()
    for subset in subsets:
        learner = train(network, tasks, "static", subset, config.subset_steps, config.lr, config.seed, start)
        losses.append([judge(learner, judged[n])[:, 1].mean() for n in names])
        changes.append(_change(static, learner, judged[names[0]][0]))
    middle = time.process_time()
    sources = {n: tasks.sources[n] for n in names}
    again = mtl.affinity(static, sources, episodes=config.episodes, subsets=len(names), progress=False)
    estimates = [again.estimator.losses(subset) for subset in subsets]
    estimated = np.array([[row[n] for n in names] for row in estimates])
    seconds = (middle - began, time.process_time() - middle)
    some = [e for n in names for e in judged[n][:2]]
    return Checks(static, names, subsets, changes[:SHOWN], some, np.array(losses), estimated, seconds)


@torch.no_grad()
def _change(start: mtl.MetaLearner, learner: mtl.MetaLearner, episode: Episode) -> dict[str, Tensor]:
    """Of log-scales and the log-size of logits, from one static start to another; the same for any episode."""
    old, new = (one.generator(one.view(episode.support, ways=episode.ways)) for one in (start, learner))
    return {SCALE: (new[SCALE] / old[SCALE]).log()[0], LOGITS: (new[LOGITS] - old[LOGITS]).reshape(())}


def linear_errors(checks: Checks) -> Iterator[list[str]]:
    """Errors of linear answers, by the distance in scales, along the way to what some subsets were trained to."""
    yield ["check", "value"]
    trained = float(np.mean([_distance(change) for change in checks.changes]))
    for distance in (*DISTANCES, trained):
        found = [_errors(checks, change, distance / _distance(change)) for change in checks.changes]
        of_margins, of_changes = np.mean(found, 0)
        what = "where training ends" if distance == trained else "linear answers"
        said = f"{100 * of_margins:.2g} % of the margins' squares, {100 * of_changes:.2g} % of their changes' squares"
        yield [f"{what}, {100 * distance:.1f} % away: error", said]


def _distance(change: dict[str, Tensor]) -> float:
    """Relative: the length of the change of log-scales over that of as many ones."""
    return float(change[SCALE].norm()) / change[SCALE].numel() ** 0.5


def _errors(checks: Checks, change: dict[str, Tensor], factor: float) -> tuple[float, float]:
    """Squared error of the linear margins over the squared margins, and over their squared changes."""
    wrong, size, moved = 0.0, 0.0, 0.0
    for episode in checks.episodes:
        adapted = ChangedBatch(checks.static, episode)
        zero = adapted.no_change
        step = {k: factor * change[k].expand_as(v) if k in change else v for k, v in zero.items()}
        with torch.no_grad():
            before, after = adapted.margins(zero)[0], adapted.margins(step)[0]
        linear = torch.cat([margins + gradients @ tensors.flat(step)[0] for margins, gradients in adapted.rows()])
        wrong += float((after - linear).square().sum())
        size += float(after.square().sum())
        moved += float((after - before).square().sum())
    return wrong / size, wrong / moved


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _chance(full: np.ndarray, linear: np.ndarray) -> float:
    """Mean agreement with groups of the same sizes drawn at random."""
    rng = np.random.default_rng(0)
    return float(np.mean([normalized_mutual_info_score(full, rng.permutation(linear)) for _ in range(RANDOM)]))
