"""Which families of tasks to train on together, and which help a new one, without training on every choice of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mtl.data.families import FamilyTasks
from mtl.episode import TaskSource
from mtl.fewshot.affinity.estimating import SubsetEstimator, choose_penalty
from mtl.fewshot.affinity.grouping import Method, group
from mtl.fewshot.affinity.linearising import Linearised, Projection, linearise
from mtl.fewshot.learner import MetaLearner
from mtl.tools.files import write_whole
from mtl.tools.heat_map import heat_map_figure
from mtl.tools.progress import ProgressBar

PROJECTED = 400  # directions that gradients are projected to
TRIED = 8  # subsets that choose the penalty

Families = FamilyTasks | Mapping[str, TaskSource]


def affinity(
    learner: MetaLearner,
    tasks: Families,
    *,
    new: Families | None = None,
    episodes: int = 16,
    subsets: int | None = None,
    size: int | None = None,
    projected: int = PROJECTED,
    penalty: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Affinity:
    """How much families of tasks help each other, after arXiv 2409.19458 (GradEx) and 2511.12779 (PolicyGradEx).

    One learner that was trained on all families, best a static one, is made linear around its fast weights: a small
    change of scale and shift, the same for all tasks, moves every answer along its gradient. What training on a subset
    of the families would change is then a logistic regression on projected gradients, which takes a fraction of a
    second, and a few hundred random subsets tell which families do well together.

    >>> found = mtl.affinity(static, mtl.data.FamilyTasks(divided, "train", preprocess=rows))  # doctest: +SKIP
    >>> found.groups(), found.figure("affinity.png")  # doctest: +SKIP

    Args:
        learner: trained on all families; what it learned is not changed. With inner steps gradients are first-order.
        tasks: families of :class:`mtl.data.FamilyTasks`, or a task source for each name; at least three.
        new: families that nothing is trained on, to learn what helps them; see :meth:`Affinity.pick`.
        episodes: of each family, at least 2; half of them are trained on, and estimates are for the other half.
        subsets: random subsets; by default the square of the number of families.
        size: families in a subset; by default a quarter of them, at least two.
        projected: directions that gradients are projected to, at least 1.
        penalty: of the regression's squared length; by default the best one for other episodes of the same families.
        seed: of subsets and projection.
        progress: show a bar.

    Raises:
        ValueError: fewer than three families, or a number outside its range.
    """
    sources, others = _by_name(tasks), {} if new is None else _by_name(new)
    size = max(2, round(len(sources) / 4)) if size is None else size
    subsets = len(sources) ** 2 if subsets is None else subsets
    _check(sources, others, episodes, subsets, size, projected)
    projection = Projection(projected, seed)
    fitted: dict[str, Linearised] = {}
    judged: dict[str, Linearised] = {}
    for name, source in ProgressBar((sources | others).items(), desc="gradients", unit="family", show=progress):
        drawn = [source.sample(index) for index in range(episodes)]
        judged[name] = linearise(learner, drawn[1::2], projection)
        if name in sources:
            fitted[name] = linearise(learner, drawn[::2], projection)
    chosen = draw_subsets(tuple(sources), subsets, size, seed)
    penalty = choose_penalty(fitted, judged, chosen[:TRIED]) if penalty is None else penalty
    estimator = SubsetEstimator(fitted, judged, penalty)
    losses = [estimator.losses(s) for s in ProgressBar(chosen, desc="subsets", unit="subset", show=progress)]
    found = np.array([[row[name] for name in judged] for row in losses])
    return Affinity(tuple(sources), tuple(others), estimator, tuple(chosen), found)


@dataclass(frozen=True, eq=False)
class Affinity:
    """Affinities of families, and what can be made of them.

    Args:
        names: of the families that can be trained on.
        new: of others.
        estimator: of the losses after training on any subset.
        subsets: that were tried.
        losses: ``(subsets, names + new)`` of every family after training on each of them: cross-entropy in nats.
    """

    names: tuple[str, ...]
    new: tuple[str, ...]
    estimator: SubsetEstimator
    subsets: tuple[tuple[str, ...], ...]
    losses: np.ndarray

    @cached_property
    def matrix(self) -> np.ndarray:
        """``(names + new, names)``: how much row gains where column is trained on too, in standard deviations.

        For a family that can be trained on, the mean over subsets that hold both, less that over subsets that hold row;
        for a new one, that over subsets that hold column, less that over all. Deviations are those of the same losses.
        """
        return affinities(self.names, self.subsets, self.losses)

    def groups(self, count: int | None = None, method: Method = "spectral") -> tuple[tuple[str, ...], ...]:
        """Groups of families to train on together, in order of their first names.

        Args:
            count: of groups; by default the number, one included, whose groups have the least estimated loss, each
                family in its own.
            method: ``"spectral"`` clustering, or ``"sdp"``, a semi-definite program (``pip install "mtl[affinity]"``).

        Raises:
            ValueError: a count that is none of ``1 .. names``.
            ImportError: cvxpy is not installed, for ``"sdp"``.
        """
        if count is not None:
            return self._grouped(count, method)
        tried = [self._grouped(n, method) for n in range(1, 1 + max(1, len(self.names) // 2))]
        return min(tried, key=self.loss)

    def _grouped(self, count: int, method: Method) -> tuple[tuple[str, ...], ...]:
        labels = group(self.matrix[: len(self.names)], count, method)
        members = [[n for n, label in zip(self.names, labels, strict=True) if label == g] for g in range(count)]
        return tuple(tuple(m) for m in members if m)

    def loss(self, groups: Sequence[Sequence[str]]) -> float:
        """Estimated mean loss of the families when each is trained with its group."""
        found = [(self.estimator.losses(members), members) for members in groups]
        return sum(losses[name] for losses, members in found for name in members) / sum(map(len, groups))

    def pick(self, family: str, groups: Sequence[Sequence[str]] | None = None) -> tuple[str, ...]:
        """The families to train on for one: of the groups, and of all together, what has the least estimated loss.

        Args:
            family: one of ``names`` or ``new``.
            groups: to choose from; by default :meth:`groups`, of every number of groups.

        Raises:
            ValueError: no such family.
        """
        if family not in (*self.names, *self.new):
            raise ValueError(f"family={family!r}: expected one of {', '.join((*self.names, *self.new))}")
        if groups is None:
            groups = [g for n in range(1, 1 + max(1, len(self.names) // 2)) for g in self._grouped(n, "spectral")]
        tried = dict.fromkeys([self.names, *(tuple(g) for g in groups)])
        return min(tried, key=lambda members: self.estimator.losses(members)[family])

    def to_csv(self, path: str | Path) -> None:
        """A row for each family with its affinities to those that can be trained on."""
        rows = zip((*self.names, *self.new), self.matrix, strict=True)
        lines = [("family", *self.names), *((name, *(f"{v:.4f}" for v in row)) for name, row in rows)]
        write_whole(path, "".join(",".join(line) + "\n" for line in lines).encode())

    def figure(self, path: str | Path, groups: Sequence[Sequence[str]] | None = None) -> Figure:
        """A heat map; families of a group, by default of :meth:`groups`, side by side; new ones below."""
        order = [name for members in groups or self.groups() for name in members]
        rows = [*order, *self.new]
        place = {name: i for i, name in enumerate((*self.names, *self.new))}
        values = self.matrix[np.ix_([place[n] for n in rows], [place[n] for n in order])]
        sizes = [len(members) for members in groups or self.groups()]
        title = "What a family (row) gains from another (column)"
        return heat_map_figure(values, rows, order, path, blocks=sizes, title=title)


def affinities(names: Sequence[str], subsets: Sequence[Sequence[str]], losses: np.ndarray) -> np.ndarray:
    """The matrix of :attr:`Affinity.matrix` from the losses of subsets."""
    held = np.array([[name in subset for name in names] for subset in subsets])
    matrix = np.zeros((losses.shape[1], len(names)))
    for row, of_row in enumerate(losses.T):
        own = held[:, row] if row < len(names) else np.ones(len(held), bool)
        gain = of_row[own].mean() - of_row if own.any() else np.zeros_like(of_row)
        for column in range(len(names)):
            both = own & held[:, column]
            matrix[row, column] = gain[both].mean() if row != column and both.any() else 0.0
        matrix[row] /= of_row[own].std() or 1.0
    return matrix


def draw_subsets(names: Iterable[str], count: int, size: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Random subsets of one size, in which every name is about equally often."""
    names = list(names)
    rng, times = np.random.default_rng(seed), np.zeros(len(names))
    drawn: list[tuple[str, ...]] = []
    for _ in range(count):
        chosen = np.lexsort((rng.random(len(names)), times))[:size]  # the rarest so far, ties by lot
        times[chosen] += 1
        drawn.append(tuple([names[i] for i in sorted(chosen.tolist())]))
    return drawn


def _by_name(tasks: Families) -> dict[str, TaskSource]:
    return dict(tasks.sources if isinstance(tasks, FamilyTasks) else tasks)


def _check(
    sources: Mapping[str, TaskSource], new: Mapping[str, TaskSource], episodes: int, subsets: int, size: int, width: int
) -> None:
    if len(sources) < 3:
        raise ValueError(f"affinity of {len(sources)} families: expected at least 3, such as label columns of a table")
    if twice := sources.keys() & new.keys():
        raise ValueError(f"new={min(twice)!r} is trained on too: expected families of other names")
    if episodes < 2:
        raise ValueError(f"episodes={episodes}: expected at least 2 of each family, to train on and to judge by")
    if not 2 <= size < len(sources):
        raise ValueError(f"size={size}: expected 2 .. {len(sources) - 1} of the {len(sources)} families in a subset")
    if subsets < len(sources):
        raise ValueError(f"subsets={subsets}: expected at least as many as families, {len(sources)}")
    if width < 1:
        raise ValueError(f"projected={width}: expected at least 1 direction")
