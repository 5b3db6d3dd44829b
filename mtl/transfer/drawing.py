"""Figure of the learned pairs: source stages left, target stages right, line widths proportional to weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl.tools.figures import ACCENT, GREY, INK, figure_file

WIDEST = 9.0  # line width of the largest weight, in points


def pairs_figure(
    where: Sequence[ArrayLike],
    source: Sequence[str],
    target: Sequence[str],
    path: str | Path,
    titles: Sequence[str] = ("",),
) -> Figure:
    """Draw which source stage teaches which target stage, in one panel per set of weights.

    Args:
        where: one array ``(sources, targets)`` of non-negative weights per panel: means over examples of
            :attr:`mtl.transfer.PairWeights.where`. All panels share one scale.
        source: names of the source's stages, the first at the bottom.
        target: names of the target's stages.
        path: ends in ``.png``, ``.svg`` or ``.pdf``.
        titles: one per panel.

    Raises:
        ValueError: weights of another shape, or negative ones.
    """
    panels = [np.asarray(w, dtype=np.float64) for w in where]
    if wrong := [w.shape for w in panels if w.shape != (len(source), len(target)) or (w < 0).any()]:
        raise ValueError(f"where has shape {wrong[0]}: expected ({len(source)}, {len(target)}) non-negative weights")
    largest = max(w.max() for w in panels) or 1.0
    with figure_file(path, 4.2 * len(panels), 1.2 + 0.8 * max(len(source), len(target))) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, weights, title in zip(axes, panels, titles, strict=True):
            _draw(panel, weights, largest, source, target)
            panel.set_title(title, fontsize=13)
    return figure


def _draw(panel: Axes, weights: np.ndarray, largest: float, source: Sequence[str], target: Sequence[str]) -> None:
    left, right = (np.linspace(0, 1, len(names)).tolist() if len(names) > 1 else [0.5] for names in (source, target))
    for (m, n), weight in np.ndenumerate(weights):
        width = WIDEST * weight / largest
        panel.plot([0, 1], [left[m], right[n]], color=ACCENT, linewidth=width, alpha=0.55, solid_capstyle="round")
        if weight == weights.max(axis=0)[n]:
            panel.text(1.02, right[n] - 0.07, f"{weight:.2g}", color=GREY, fontsize=9, ha="left", va="center")
    for x, names, heights, side in ((0, source, left, "right"), (1, target, right, "left")):
        for name, height in zip(names, heights, strict=True):
            panel.plot(x, height, "o", color=INK, markersize=9, zorder=3)
            panel.text(x + (0.04 if x else -0.04), height, name, ha=side, va="center", fontsize=11)
    panel.set(xlim=(-0.5, 1.5), ylim=(-0.15, 1.15))
    panel.set_axis_off()
