"""The picture: memory against the number of inner steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mtl.planning.choices import UNROLLED
from mtl.planning.planner import Plan, Predicted
from mtl.tools.figures import ACCENT, GREY, REFERENCE, WRONG, saved_figure

LOOKS: dict[tuple[str, str], dict[str, Any]] = {
    (UNROLLED, ""): {"color": WRONG, "marker": "o"},
    ("rematerialised", "reverse"): {"color": GREY, "marker": "s"},
    ("rematerialised", "finite-difference"): {"color": ACCENT, "marker": "D"},
}
NAMES = {"reverse": "windowed or exact sweep, reverse pulls", "finite-difference": "the same, finite-difference pulls"}
STYLES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (3, 1, 1, 1)))


def memory_figure(plan: Plan, path: str | Path) -> Figure:
    """Peak memory for 1 .. 2 K inner steps: unrolled it grows, swept it does not. Dashes tell what is kept.

    Raises:
        ValueError: for another suffix than .png, .svg or .pdf.
    """
    keepings = list(dict.fromkeys(p.keeping for p in plan.predicted))
    steps = range(1, 2 * plan.config.inner_steps + 1)
    with saved_figure(path, 11, 6.5) as figure:
        panel = figure.subplots()
        for p in (p for p in plan.predicted if (p.estimator, p.pull) in LOOKS):
            style = STYLES[keepings.index(p.keeping) % len(STYLES)]
            look: dict[str, Any] = LOOKS[p.estimator, p.pull] | {"linestyle": style}
            label = f"{NAMES.get(p.pull, UNROLLED)}, keeping {p.keeping}"
            every = max(1, len(steps) // 8)
            panel.plot(steps, [_at(plan, p, k) for k in steps], label=label, markevery=every, **look)
        panel.axhline(plan.config.budget, **REFERENCE)
        beside: Any = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
        panel.annotate(f"{plan.config.budget:g} GiB", (1, plan.config.budget), va="center", **beside)
        panel.set_yscale("log")
        panel.set(title=plan.config.backbone, xlabel="inner steps", ylabel="predicted peak memory in GiB")
        panel.grid(axis="y", which="both")
        figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    return figure


def _at(plan: Plan, p: Predicted, steps: int) -> float:
    return p.gib + (steps - plan.config.inner_steps) * p.gib_per_step
