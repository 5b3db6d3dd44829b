"""How far probabilities can be trusted: accuracy by confidence, and the error that is left when unsure answers go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl.tools.family_dots import COLOURS, MARKERS
from mtl.tools.figures import GREY, figure_file
from mtl.tools.reliability import Answers

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
POINTS = 200  # of a risk-coverage curve


def reliability_figure(answers: Mapping[str, Answers], path: str | Path, title: str = "") -> Figure:
    """Two panels: accuracy by confidence beside the diagonal of honest probabilities, and error by coverage.

    A line below the diagonal is too sure of itself; pale discs show how many answers are in a bin. The legend gives the
    expected calibration error (ECE) with its 95 % interval.

    Args:
        answers: of one to five methods by name, such as ``row.answers`` of a row of a comparison.
        path: ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ValueError: another number of methods.
    """
    if not 1 <= len(answers) <= len(COLOURS):
        raise ValueError(f"reliability_figure shows one to {len(COLOURS)} methods, not {len(answers)}: {list(answers)}")
    with figure_file(path, 11, 5.2) as figure:
        left, beside = figure.subplots(1, 2)
        left.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for i, (name, found) in enumerate(answers.items()):
            _draw(left, beside, i, name, found)
        left.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="accuracy in %", title=title)
        beside.set(xlim=(0, 100), xlabel="coverage: answered queries in %, the surest", ylabel="error among them in %")
        beside.set_ylim(bottom=0)
        for panel in (left, beside):
            panel.grid()
        handles, labels = left.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(answers)), fontsize=12)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def risk_by_coverage(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Share of all queries that are answered, the surest ones, and the error among them, both in ``0 .. 1``.

    Queries of all episodes together, so that one threshold on the probability stands behind each point.
    """
    sure, right = np.concatenate(answers.confidence), np.concatenate(answers.right)
    count = np.arange(1, len(sure) + 1)
    risk = np.cumsum(~right[np.argsort(-sure, kind="stable")]) / count
    shown = np.unique(np.linspace(0, len(sure) - 1, POINTS).round().astype(int))
    return count[shown] / len(sure), risk[shown]


def _draw(left: Axes, beside: Axes, i: int, name: str, answers: Answers) -> None:
    bins, (ece, half) = answers.reliability, answers.ece
    full = bins.count > 0
    x, y, share = 100 * bins.confidence[full], 100 * bins.accuracy[full], bins.count[full] / bins.count.sum()
    look = {"color": COLOURS[i], "linestyle": LINES[i], "linewidth": 2}
    label = f"{name}, ECE {100 * ece:.1f}{f' ± {100 * half:.1f}' if half == half else ''} %"
    left.plot(x, y, marker=MARKERS[i], label=label, markersize=6, **look)
    left.scatter(x, y, s=30 + 600 * share, color=COLOURS[i], alpha=0.2, linewidths=0)  # how many queries are there
    coverage, risk = risk_by_coverage(answers)
    beside.plot(100 * coverage, 100 * risk, **look)
