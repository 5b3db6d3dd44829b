"""Figures for talks and papers. Each function writes ``path`` (``.png``, ``.svg`` or ``.pdf``) and returns the figure.

They do not use ``pyplot``, so no backend is chosen and no window opens.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mtl.tools.comparison import Comparison, mean_interval, verdicts
from mtl.tools.files import write_whole

INK, GREY, PALE, ACCENT = "#1f2937", "#6b7280", "#e5e7eb", "#1d4ed8"
RIGHT, WRONG = "#00755c", "#c2410c"  # a green towards blue and a red towards yellow: apart for colour-blind readers too
VALIDATION = "#b45309"
REFERENCE: dict[str, Any] = {"color": ACCENT, "linewidth": 1, "linestyle": (0, (4, 3))}
# Shape and filling repeat the colour, for black-and-white prints and colour-blind readers.
LOOKS: dict[str, dict[str, Any]] = {
    "ours": {"color": ACCENT, "marker": "D"},
    "baseline": {"color": GREY, "marker": "o"},
    "control": {"color": GREY, "marker": "o", "markerfacecolor": "white"},
}
STYLE: Any = {
    **{"font.size": 14, "axes.titlesize": 17, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "white"),
    **{"axes.edgecolor": GREY, "grid.color": PALE, "axes.axisbelow": True},
    "svg.hashsalt": "mtl",  # reproducible bytes
}
LEADS = {"wins": INK, "ties": GREY, "loses": WRONG}
MOST_PANELS = 6  # families that have one each


@contextmanager
def figure_file(path: str | Path, width: float, height: float, dpi: float = 150) -> Iterator[Figure]:
    """Yield a figure of ``width`` by ``height`` inches and save it when the block succeeds, whole or not at all."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise ValueError(f"{path}: a figure needs the suffix .png, .svg or .pdf")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("constrained", w_pad=0.1)
        yield figure
        save_figure(figure, path, dpi)


def save_figure(figure: Figure, path: str | Path, dpi: float = 150) -> None:
    """Write a figure as a whole or not at all.

    Raises:
        OSError: it could not be written; the message says why, and what was there still is.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    drawn = io.BytesIO()  # matplotlib's writer of PDF reports a full disk as an AttributeError
    figure.savefig(drawn, format=suffix, dpi=dpi, metadata={"Date": None} if suffix == "svg" else None)
    write_whole(path, drawn.getvalue())


def accuracy_figure(comparisons: Sequence[Comparison], path: str | Path) -> Figure:
    """Dots with 95 % intervals: a column per setting, all episodes above, a small panel per family below,
    where there are few of them (see :func:`mtl.tools.family_figure` for many).

    All panels list the methods in the same order: ours, baselines, controls, the most accurate first. The dashed line
    is the reference. The numbers at the right are its paired lead in points: bold if the interval excludes 0, red if
    the reference trails. Judge differences by these numbers; intervals of dots may overlap although methods differ.

    Raises:
        ValueError: no comparison, or another suffix.
    """
    if not comparisons:
        raise ValueError("accuracy_figure needs at least one comparison")
    places = _places(comparisons)
    smalls = [c.by_family() if 1 < len(set(c.families)) <= MOST_PANELS else {} for c in comparisons]
    widths = [max(len(small), 1) for small in smalls]
    heights = [0.34 * len(places)] + [0.27 * len(places)] * any(smalls)
    with figure_file(path, 4 + max(1.5 * sum(widths), 6 * len(widths)), 1.7 + sum(heights)) as figure:
        grid = figure.add_gridspec(len(heights), sum(widths), height_ratios=heights)
        for i, (comparison, small) in enumerate(zip(comparisons, smalls, strict=True)):
            start, stop = sum(widths[:i]), sum(widths[: i + 1])
            panel = figure.add_subplot(grid[0, start:stop])
            _dots(panel, comparison, places, named=i == 0, size=8)
            _leads(panel, comparison, places)
            panel.set_title(comparison.setting)
            for column, (family, part) in enumerate(small.items(), start):
                panel = figure.add_subplot(grid[1, column])
                _dots(panel, part, places, named=column == 0, size=5)
                panel.set_title(family, fontsize=14, fontweight="normal")
        figure.supxlabel("accuracy in %, mean and 95 % interval over episodes", fontsize=14)
        _legend(figure, comparisons)
    return figure


def _places(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Height of each method, 0 at the top: ordered by kind, with gaps between kinds, then by mean accuracy."""
    rows = [row for c in comparisons for row in c.rows]
    kinds = {row.method: list(LOOKS).index(row.kind) for row in rows}
    means = {m: np.mean([row.accuracy.mean() for row in rows if row.method == m]) for m in kinds}
    order, present = sorted(kinds, key=lambda m: (kinds[m], -means[m])), sorted(set(kinds.values()))
    return {m: i + 0.5 * present.index(kinds[m]) for i, m in enumerate(order)}


def _dots(panel: Axes, comparison: Comparison, places: Mapping[str, float], named: bool, size: float) -> None:
    for row in comparison.rows:
        mean, half = (100 * v for v in mean_interval(row.accuracy))
        look = LOOKS[row.kind] | {"markersize": size, "elinewidth": size / 3.5, "zorder": 3}
        panel.errorbar(mean, places[row.method], xerr=np.nan_to_num(half), **look)
        if row.method == comparison.reference:
            panel.axvline(mean, zorder=1, **REFERENCE)
    panel.set_ylim(max(places.values()) + 0.7, -0.7)
    panel.set_yticks(list(places.values()), list(places) if named else [])
    panel.xaxis.set_major_locator(MaxNLocator(nbins=int(size) - 1, steps=[1, 2, 5, 10], min_n_ticks=2))
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y")
    panel.spines["left"].set_visible(False)
    panel.margins(x=0.08)


def _leads(panel: Axes, comparison: Comparison, places: Mapping[str, float]) -> None:
    """The reference's paired lead over each method, as labels of a second axis, for which the layout makes room."""
    found = verdicts(comparison, per_family=False)
    leads = [f"{100 * v.difference:+.1f}".rjust(5, "\N{FIGURE SPACE}") + f" ± {100 * v.half_width:.1f}" for v in found]
    axis = panel.secondary_yaxis("right")
    axis.set_yticks([places[v.method] for v in found], [t.replace("-", "\N{MINUS SIGN}") for t in leads], fontsize=12)
    axis.tick_params(length=0)
    axis.spines["right"].set_visible(False)
    for v, text in zip(found, axis.get_yticklabels(), strict=True):
        text.set(fontweight="normal" if v.outcome == "ties" else "bold", color=LEADS[v.outcome])
    panel.annotate("paired lead", (1, 1), (12, 6), "axes fraction", "offset points", fontsize=12, color=GREY)


def _legend(figure: Figure, comparisons: Sequence[Comparison]) -> None:
    present = {row.kind for c in comparisons for row in c.rows}
    looks = {kind: look for kind, look in LOOKS.items() if kind in present}
    handles = [Line2D([], [], linestyle="none", markersize=8, label=kind, **look) for kind, look in looks.items()]
    references = " / ".join(dict.fromkeys(c.reference for c in comparisons))
    handles.append(Line2D([], [], label=f"reference: {references}", **REFERENCE))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handletextpad=0.4)


def curves_figure(metrics: Sequence[Mapping[str, float]], path: str | Path) -> Figure:
    """Loss and accuracy over the steps: smoothed training curves over pale raw values, validation as dots.

    Args:
        metrics: one per logged step, in order: ``step`` and any of ``loss``, ``accuracy`` (``0 .. 1``),
            ``validation_loss``, ``validation_accuracy`` and ``validation_*_half_width``; other keys are ignored.

    Raises:
        ValueError: there is neither a loss nor an accuracy to draw.
    """
    logged = set().union(*metrics)
    names = [name for name in ("loss", "accuracy") if {name, f"validation_{name}"} & logged]
    if not names:
        raise ValueError(f"no loss or accuracy to draw among the metrics {sorted(logged)}")
    with figure_file(path, 6.5 * len(names), 4.8) as figure:
        for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _curve(panel, metrics, name, unit=100.0 if name == "accuracy" else 1.0)
            panel.set(ylabel="accuracy in %" if name == "accuracy" else "cross-entropy in nats", xlabel="outer step")
            panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            panel.grid(axis="y")
        drawn = [panel.get_legend_handles_labels() for panel in figure.axes]
        labels = {label: handle for handles, names in drawn for handle, label in zip(handles, names, strict=True)}
        figure.legend(list(labels.values()), list(labels), loc="outside upper right", ncols=len(labels))
    return figure


def _curve(panel: Axes, metrics: Sequence[Mapping[str, float]], name: str, unit: float) -> None:
    steps, values, _ = _series(metrics, name, unit)
    ends = []
    if len(steps):
        smooth = _smoothed(values)
        panel.plot(
            steps, values, color=ACCENT, alpha=0.15 if len(steps) > 300 else 0.4, linewidth=0.8, label="each step"
        )
        panel.plot(steps, smooth, color=ACCENT, linewidth=2.5, label="training, smoothed")
        ends = [*np.quantile(values, [0.01, 0.99]), smooth.min(), smooth.max()]  # single steps may be far out
    steps, values, halves = _series(metrics, f"validation_{name}", unit)
    if len(steps):
        label = "validation, 95 % interval" if halves.any() else "validation"
        look = {"fmt": "o", "color": VALIDATION, "elinewidth": 2, "markersize": 7, "zorder": 3, "label": label}
        panel.errorbar(steps, values, yerr=halves, **look)
        ends += [(values - halves).min(), (values + halves).max()]
    if ends:  # nothing is, where all values are not finite
        margin = 0.05 * (max(ends) - min(ends)) or 0.5
        panel.set_ylim(min(ends) - margin, max(ends) + margin)


def _series(metrics: Sequence[Mapping[str, float]], name: str, unit: float) -> np.ndarray:
    """Steps, values and half widths ``(3, n)``, the latter times ``unit``, where ``name`` is logged and finite."""
    found = [m for m in metrics if np.isfinite(m.get(name, np.nan))]
    points = [(m["step"], unit * m[name], unit * m.get(f"{name}_half_width", 0.0)) for m in found]
    return np.nan_to_num(np.array(points, dtype=np.float64).reshape(-1, 3).T)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean under a centred bell, a tenth of the run wide; a running average would lag behind."""
    kernel = np.hanning(max(1, len(values) // 10) + 2)[1:-1]
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
