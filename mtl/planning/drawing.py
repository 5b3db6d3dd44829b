"""Figure of a plan: peak memory over the number of inner steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mtl.planning.choices import UNROLLED
from mtl.planning.planner import Plan, Predicted
from mtl.tools.figures import ACCENT, GREY, REFERENCE, WRONG, figure_file

LOOKS: dict[tuple[str, str], dict[str, Any]] = {
    (UNROLLED, ""): {"color": WRONG, "marker": "o"},
    ("rematerialised", "reverse"): {"color": GREY, "marker": "s"},
    ("rematerialised", "finite-difference"): {"color": ACCENT, "marker": "D"},
}
NAMES = {"reverse": "windowed or exact sweep, reverse pulls", "finite-difference": "the same, finite-difference pulls"}
STYLES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (3, 1, 1, 1)))


def memory_figure(plan: Plan, path: str | Path) -> Figure:
    """Peak memory for 1 .. 2 K inner steps, which grows for unrolled MAML only. Line styles show stored activations.

    Raises:
        ValueError: the suffix is not .png, .svg or .pdf.
    """
    options, names = plan.options, list(dict.fromkeys(p.activations for p in plan.predicted))
    steps = range(1, 2 * options.inner_steps + 1)
    with figure_file(path, 11, 6.5) as figure:
        panel = figure.subplots()
        for p in (p for p in plan.predicted if (p.estimator, p.pull) in LOOKS):
            style = STYLES[names.index(p.activations) % len(STYLES)]
            look: dict[str, Any] = LOOKS[p.estimator, p.pull] | {"linestyle": style}
            label = f"{NAMES.get(p.pull, UNROLLED)}, keeping {p.activations}"
            every = max(1, len(steps) // 8)
            panel.plot(steps, [_at(plan, p, k) for k in steps], label=label, markevery=every, **look)
        panel.axhline(options.budget, **REFERENCE)
        beside: Any = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
        panel.annotate(f"{options.budget:g} GiB", (1, options.budget), va="center", **beside)
        panel.set_yscale("log")
        panel.set(title=options.backbone, xlabel="inner steps", ylabel="predicted peak memory in GiB")
        panel.grid(axis="y", which="both")
        figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    return figure


def _at(plan: Plan, p: Predicted, steps: int) -> float:
    return p.gib + (steps - plan.options.inner_steps) * p.gib_per_step
