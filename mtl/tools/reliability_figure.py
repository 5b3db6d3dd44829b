"""How far probabilities can be trusted: accuracy by confidence, and the error that is left when unsure answers go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl.tools.comparison import Comparison
from mtl.tools.family_figure import COLOURS, MARKERS
from mtl.tools.figures import GREY, figure_file
from mtl.tools.reliability import BINS

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Of one method.

    Args:
        confidence, accuracy: means of the queries in each bin of confidence, ``(bins,)`` in ``0 .. 1``.
        count: queries in each bin, ``(bins,)``; bins without any are not drawn.
        coverage: shares of the queries that are answered, the surest ones, ``(k,)`` in ``0 .. 1``; may be empty.
        risk: the error among them, ``(k,)`` in ``0 .. 1``.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy over all queries, in ``0 .. 1``."""
        gap = np.abs(np.asarray(self.confidence) - self.accuracy)
        return float(np.average(np.where(self.count > 0, gap, 0), weights=self.count))


def reliability_of(confidences: ArrayLike, right: ArrayLike, bins: int = 10) -> ReliabilityCurve:
    """The curves of some answers.

    Args:
        confidences: the probability of the most likely class of each query, ``(n,)`` in ``0 .. 1``.
        right: whether it was the right one, ``(n,)``.
        bins: of equal width.
    """
    sure, good = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.clip((sure * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = lambda values: np.bincount(place, values, bins) / np.maximum(count, 1)  # noqa: E731
    order = np.argsort(-sure, kind="stable")
    answered = np.arange(1, len(sure) + 1)
    return ReliabilityCurve(mean(sure), mean(good), count, answered / len(sure), np.cumsum(1 - good[order]) / answered)


def reliability_curves(comparison: Comparison) -> dict[str, ReliabilityCurve]:
    """The curves of the methods that have probabilities, at most five: ours first, then baselines by their order."""
    rows = [row for kind in ("ours", "baseline") for row in comparison.rows if row.kind == kind]
    joined = {row.method: row.answers for row in rows if row.answers is not None}
    found = {name: (np.concatenate(a.confidence), np.concatenate(a.right)) for name, a in joined.items()}
    return {name: reliability_of(*found[name], BINS) for name in [*found][: len(COLOURS)]}


def reliability_figure(curves: Mapping[str, ReliabilityCurve], path: str | Path, title: str = "") -> Figure:
    """Two panels: accuracy by confidence beside the diagonal of honest probabilities, and error by coverage.

    A curve below the diagonal is too sure of itself. The legend gives the expected calibration error (ECE).

    Args:
        curves: of one to five methods by name.
        path: ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ValueError: another number of methods.
    """
    if not 1 <= len(curves) <= len(COLOURS):
        raise ValueError(f"reliability_figure shows one to {len(COLOURS)} methods, not {len(curves)}: {list(curves)}")
    with figure_file(path, 11, 5.2) as figure:
        left, beside = figure.subplots(1, 2)
        left.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for i, (name, curve) in enumerate(curves.items()):
            _draw(left, beside, i, f"{name}, ECE {100 * curve.expected_calibration_error:.1f} %", curve)
        left.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="accuracy in %", title=title)
        beside.set(xlim=(0, 100), xlabel="coverage: answered queries in %, the surest", ylabel="error among them in %")
        beside.set_ylim(bottom=0)
        for panel in (left, beside):
            panel.grid()
        handles, labels = left.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(curves)), fontsize=12)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _draw(left: Axes, beside: Axes, i: int, label: str, curve: ReliabilityCurve) -> None:
    full = np.asarray(curve.count) > 0
    share = np.asarray(curve.count)[full] / np.sum(curve.count)
    look = {"color": COLOURS[i], "linestyle": LINES[i], "linewidth": 2}
    x, y = 100 * np.asarray(curve.confidence)[full], 100 * np.asarray(curve.accuracy)[full]
    left.plot(x, y, marker=MARKERS[i], label=label, markersize=6, **look)
    left.scatter(x, y, s=30 + 600 * share, color=COLOURS[i], alpha=0.2, linewidths=0)  # how many queries are there
    beside.plot(100 * np.asarray(curve.coverage), 100 * np.asarray(curve.risk), **look)
