"""A figure of several methods family by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl.tools.comparison import SEEN, UNSEEN, Comparison, mean_interval, paired_difference
from mtl.tools.figures import ACCENT, GREY, INK, PALE, WRONG, figure_file

COLOURS = (ACCENT, GREY, "#e69f00", "#00755c", "#cc79a7")  # apart for colour-blind readers, and by their markers
MARKERS = ("D", "o", "s", "^", "v")
MOST = 60  # families; of more, those of the largest and the smallest leads
Places = dict[str, float]
GROUP = 1.2  # height of the heading of a group, in rows


def family_figure(
    comparison: Comparison, path: str | Path, methods: Sequence[str], families: Sequence[str] | None = None
) -> Figure:
    """A row per family: accuracies with their 95 % intervals, and beside them the lead of the first method.

    Families that were trained on and those that were not stand apart, the largest lead on top. The lead is over the
    second method, in points, paired episode by episode with its own 95 % interval: judge by it, since intervals of
    accuracies may overlap although methods differ.

    Args:
        methods: two to five names of rows.
        families: all by default; of more than 60 the extremes.

    Raises:
        ValueError: another number of methods, or one that there is not.
    """
    if not 2 <= len(methods) <= len(COLOURS):
        raise ValueError(f"family_figure shows two to {len(COLOURS)} methods, not {len(methods)}: {list(methods)}")
    parts = {k: v for k, v in comparison.by_family().items() if families is None or k in families}
    leads = {k: paired_difference(*(100 * v.row(m).accuracy for m in methods[:2])) for k, v in parts.items()}
    places, headings = _places(comparison, leads)
    height = 2.3 + 0.36 * max([*places.values(), *headings.values()])
    with figure_file(path, 11, height) as figure:
        panel, beside = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1.6])
        for name, y in places.items():
            _accuracies(panel, parts[name], y, methods)
            _lead(beside, y, *leads[name])
        for heading, y in headings.items():
            panel.annotate(heading, (0, y), (6, 0), ("axes fraction", "data"), "offset points", **HEADING)
        panel.set_ylim(max(places.values()) + 0.8, -0.8)
        panel.set_yticks(list(places.values()), list(places), parse_math=False, fontsize=13)
        for axes in (panel, beside):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
        beside.axvline(0, color=INK, linewidth=1)
        panel.set_xlabel("accuracy in %", fontsize=13)
        beside.set_xlabel("lead in points, paired", fontsize=13)
        panel.set_title(comparison.setting)
        beside.set_title(f"{methods[0]}\nover {methods[1]}", fontsize=11, fontweight="normal", parse_math=False)
        hidden = len(parts) - len(places)
        note = "means and 95 % intervals over episodes" + (f"; {hidden} families between are not shown" * bool(hidden))
        figure.legend(
            loc="outside lower center", ncols=min(3, len(methods)), title=note, title_fontsize=11, fontsize=12
        )
    return figure


HEADING = {"va": "center", "color": GREY, "fontsize": 12, "fontstyle": "italic"}


def _places(
    comparison: Comparison, leads: Mapping[str, tuple[float, float]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Heights of the families, 0 on top, and those of the headings of the two groups, where there are two."""
    order = sorted(leads, key=lambda k: -leads[k][0])
    if len(order) > MOST:
        order = [*order[: MOST // 2], *order[-MOST // 2 :]]
    groups = {SEEN: [k for k in order if k not in comparison.unseen]}
    groups[UNSEEN] = [k for k in order if k in comparison.unseen]
    if not all(groups.values()):
        return {k: float(i) for i, k in enumerate(order)}, {}
    places, headings, y = {}, {}, 0.0
    for name, members in groups.items():
        headings[name] = y
        places |= {k: y + GROUP + i for i, k in enumerate(members)}
        y += GROUP + len(members) + 0.3
    return places, headings


def _accuracies(panel: Axes, part: Comparison, y: float, methods: Sequence[str]) -> None:
    panel.axhline(y, color=PALE, zorder=0)
    labelled = {text.get_label() for text in panel.containers}
    for i, method in enumerate(methods):
        mean, half = mean_interval(100 * part.row(method).accuracy)
        look = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 7, "linestyle": "none", "elinewidth": 1.5}
        label = None if method in labelled else method
        panel.errorbar(mean, y + 0.14 * (i - (len(methods) - 1) / 2), xerr=half, label=label, **look)


def _lead(panel: Axes, y: float, lead: float, half: float) -> None:
    clear = abs(lead) > half
    color = GREY if not clear else ACCENT if lead > 0 else WRONG
    panel.barh(y, lead, xerr=half, height=0.6, color=color, alpha=0.85, error_kw={"ecolor": INK, "elinewidth": 1.5})
    text = f"{lead:+.1f}".replace("-", "\N{MINUS SIGN}")
    weight = "bold" if clear else "normal"
    panel.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=color, fontweight=weight)
