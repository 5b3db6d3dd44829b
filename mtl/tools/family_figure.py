"""A figure of several methods family by family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mtl.tools.comparison import Comparison, mean_interval
from mtl.tools.figures import ACCENT, GREY, INK, PALE, figure_file

COLOURS = (ACCENT, GREY, "#d97706", "#15803d", "#7c3aed")
MARKERS = ("D", "o", "s", "^", "v")


def family_figure(
    comparison: Comparison, path: str | Path, methods: Sequence[str], families: Sequence[str] | None = None
) -> Figure:
    """A row per family, a marker per method with its 95 % interval; the largest lead of the first method on top.

    Args:
        methods: two to five names of rows; the lead is the first one's over the second.
        families: all by default; unseen ones are said to be so.

    Raises:
        ValueError: another number of methods, or one that there is not.
    """
    if not 2 <= len(methods) <= len(COLOURS):
        raise ValueError(f"family_figure shows two to {len(COLOURS)} methods, not {len(methods)}: {list(methods)}")
    parts = {k: v for k, v in comparison.by_family().items() if families is None or k in families}
    means = {k: [mean_interval(100 * part.row(m).accuracy) for m in methods] for k, part in parts.items()}
    order = sorted(means, key=lambda k: means[k][0][0] - means[k][1][0])
    with figure_file(path, 10, 1.6 + 0.42 * len(order)) as figure:
        panel = figure.add_subplot()
        for y, family in enumerate(order):
            panel.axhline(y, color=PALE, zorder=0)
            for i, (mean, half) in enumerate(means[family]):
                look = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 8, "linestyle": "none"}
                label = methods[i] if y == 0 else None
                panel.errorbar(mean, y + 0.12 * (i - (len(methods) - 1) / 2), xerr=half, label=label, **look)
            lead = means[family][0][0] - means[family][1][0]
            panel.annotate(f"{lead:+.1f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", color=INK)
        unseen = [f"{k} (unseen)" if k in comparison.unseen else k for k in order]
        panel.set_yticks(range(len(order)), unseen)
        panel.set_xlabel("accuracy in %, mean and 95 % interval over episodes")
        panel.set_title(comparison.setting)
        figure.legend(loc="outside lower center", ncols=min(3, len(methods)))
    return figure
