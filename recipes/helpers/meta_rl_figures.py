"""Pictures of meta-learned discounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from helpers.cartpole import Kind, Progress
from helpers.discounting_chain import Curve
from mtl.tools.figures import figure_file

COLOURS = ["#1d4ed8", "#c2410c", "#00755c", "#b45309", "#6b7280", "#7c3aed"]
MARKERS = "oDs^vx"


def draw_chain(curves: Mapping[str, Curve], path: Path) -> None:
    """Discount and return over the updates; bands span the seeds."""
    with figure_file(path, 13, 5, dpi=90) as figure:
        left, right = figure.subplots(1, 2)
        for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
            _band(left, curve.updates, curve.discounts, colour, name)
            _band(right, curve.updates, curve.returns, colour, name)
        left.set(xlabel="updates of the policy", ylabel="learned discount")
        right.set(xlabel="updates of the policy", ylabel="return, undiscounted")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_noise(rows: Sequence[Mapping[str, str | float]], path: Path) -> None:
    """Mean, standard deviation and their ratio against the number of inner steps."""
    panels = {
        "mean": "mean / true meta-gradient",
        "deviation": "standard deviation / true",
        "mean over deviation": "mean / standard deviation",
    }
    with figure_file(path, 15, 5, dpi=90) as figure:
        axes = figure.subplots(1, 3)
        names = list(dict.fromkeys(row["estimator"] for row in rows))
        for panel, (key, label) in zip(axes, panels.items(), strict=True):
            for colour, marker, name in zip(COLOURS, MARKERS, names, strict=False):
                mine = [row for row in rows if row["estimator"] == name]
                steps, values = ([float(row[k]) for row in mine] for k in ("N", key))
                panel.plot(steps, values, color=colour, marker=marker, label=str(name))
            panel.set_xscale("log", base=2)
            panel.set(xlabel="inner steps, N", ylabel=label, ylim=(0, None))
        axes[0].axhline(1, color="grey", linestyle=":")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(names))


def draw_cartpole(progress: Progress, kinds: Sequence[Kind], path: Path) -> None:
    """Length of episodes of all agents, and the discounts and traces of those that learn them."""
    with figure_file(path, 13, 5.5, dpi=90) as figure:
        left, right = figure.subplots(1, 2)
        fixed, colours = iter(np.linspace(0.8, 0.1, sum(not k.learned for k in kinds))), iter(COLOURS)
        for i, kind in enumerate(kinds):
            lengths = progress.lengths[:, i].mean(1)
            if not kind.learned:
                left.plot(progress.rounds, lengths, color=str(next(fixed)), linewidth=1.5, label=kind.name)
                continue
            colour = next(colours)
            left.plot(progress.rounds, lengths, color=colour, linewidth=3, label=kind.name)
            _band(right, progress.rounds, progress.discounts[:, i], colour, f"{kind.name}: discount")
            if "trace" in kind.learned:
                _band(right, progress.rounds, progress.traces[:, i], next(colours), f"{kind.name}: trace")
        left.set(xlabel="outer steps", ylabel="length of episodes, at most 500")
        right.set(xlabel="outer steps", ylabel="learned")
        right.legend()
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _band(panel: Axes, at: Sequence[int], values: Tensor, colour: str, label: str) -> None:
    """The mean over seeds, and a band from the lowest to the highest."""
    panel.plot(at, values.mean(1), color=colour, label=label)
    panel.fill_between(at, values.amin(1).numpy(), values.amax(1).numpy(), color=colour, alpha=0.2, linewidth=0)
