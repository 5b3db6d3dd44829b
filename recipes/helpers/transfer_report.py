"""Tables and pictures of meta_transfer.py, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mtl
from mtl.tools.figures import ACCENT, GREY, INK, figure_file
from mtl.tools.files import atomic_write, write_csv
from mtl.transfer import pairs_figure

REFERENCE = "rematerialised"  # the exact gradient
BASELINE = "all pairs"  # what learned weights have to beat
Rows = list[dict[str, Any]]


def write(rows: Rows, out: Path, stages: Sequence[str], main: int) -> None:
    """``runs.csv``, ``table.md`` and the pictures.

    Args:
        stages: of the source, by name.
        main: the K of the picture of all methods.
    """
    write_csv([{k: v for k, v in r.items() if k not in ("right", "where", "pairs")} for r in rows], out / "runs.csv")
    summary = table(rows)
    with atomic_write(out / "table.md") as draft:
        draft.write_text(summary + "\n")
    print(f"\n{summary}")
    draw_methods([r for r in rows if r["inner_steps"] in (0, main)], out / "accuracy.png")
    draw_steps([r for r in rows if r["inner_steps"]], out / "steps.png")
    learned = [r for r in rows if r["inner_steps"] == main and r["seed"] == rows[0]["seed"] and "where" in r]
    if shown := [r for r in learned if r["method"] in (REFERENCE, "windowed, adaptive", "windowed, lazy")]:
        target = [f"target {n + 1}" for n in range(len(shown[0]["where"][0]))]
        source = [f"source {s}" for s in stages]
        pairs_figure([r["where"] for r in shown], source, target, out / "pairs.png", [r["method"] for r in shown])


def groups(rows: Rows) -> dict[tuple[int, str], Rows]:
    """Rows of all seeds by K and method."""
    found: dict[tuple[int, str], Rows] = {}
    for row in rows:
        found.setdefault((row["inner_steps"], row["method"]), []).append(row)
    return found


def table(rows: Rows) -> str:
    """Markdown: accuracies over seeds, differences to the exact gradient and to all pairs alike, times as ratios."""
    by = groups(rows)
    lines = [
        "| K | method | accuracy, % | less exact, points | less all pairs, points | time | outer step |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    alike = by.get((0, BASELINE))
    for (k, method), group in by.items():
        mean, half = mtl.tools.mean_interval([100 * r["accuracy"] for r in group])
        accuracy = f"{mean:.1f} ± {half:.1f}" if len(group) > 1 else f"{mean:.1f}"
        exact = by.get((k or next((i for i, m in by if m == REFERENCE), 0), REFERENCE))
        time = step = ""
        if exact:
            time = f"{seconds(group, 'seconds') / seconds(exact, 'seconds'):.2f}"
            key = "seconds_per_outer_step"
            step = f"{seconds(group, key) / seconds(exact, key):.2f}" if key in group[0] else ""
        differences = f"{difference(group, exact)} | {difference(group, alike)}"
        lines.append(f"| {k or ''} | {method} | {accuracy} | {differences} | {time} | {step} |")
    return "\n".join(lines)


def difference(group: Rows, other: Rows | None) -> str:
    """Points of accuracy on the same seeds and test images, and the wider of the 95 % intervals over either."""
    if other is None or group is other:
        return ""
    mean, half = mtl.tools.paired_difference(100 * right(group), 100 * right(other))
    if len(group) > 1:
        half = max(
            half, mtl.tools.paired_difference(*([100 * r["accuracy"] for r in rows] for rows in (group, other)))[1]
        )
    return f"{mean:+.1f} ± {half:.1f}"


def right(group: Rows) -> np.ndarray:
    """How often each test image is right over the seeds, ``(images,)``."""
    return np.mean([[c == "1" for c in r["right"]] for r in group], axis=0)


def seconds(group: Rows, key: str) -> float:
    return float(np.median([r[key] for r in group]))


def draw_methods(rows: Rows, path: Path) -> None:
    """A dot per method with its interval over seeds, and a small one per seed."""
    by = groups(rows)
    with figure_file(path, 8, 1.2 + 0.34 * len(by)) as figure:
        panel = figure.subplots()
        for y, ((k, _), group) in enumerate(reversed(by.items())):
            values = [100 * r["accuracy"] for r in group]
            mean, half = mtl.tools.mean_interval(values)
            colour = ACCENT if k else GREY
            panel.plot(values, [y] * len(values), "o", color=colour, markersize=4, alpha=0.4)
            panel.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="D" if k else "o", color=colour, elinewidth=2)
        panel.set_yticks(range(len(by)), [f"{m}, K={k}" if k else m for k, m in reversed(by)])
        panel.set(xlabel="accuracy on test images, %")
        panel.grid(axis="x")


def draw_steps(rows: Rows, path: Path) -> None:
    """Accuracy and time of an outer step against the number of virtual steps."""
    by = groups(rows)
    many = [m for m in dict.fromkeys(m for _, m in by) if sum(name == m for _, name in by) > 1]
    if not many:
        return
    with figure_file(path, 11, 4.2) as figure:
        left, right_panel = figure.subplots(1, 2)
        for colour, method in zip([INK, ACCENT, "#15803d", "#dc2626", GREY] * len(many), many, strict=False):
            ks = sorted(k for k, m in by if m == method)
            mean, half = np.array([mtl.tools.mean_interval([100 * r["accuracy"] for r in by[k, method]]) for k in ks]).T
            left.errorbar(ks, mean, yerr=np.nan_to_num(half), fmt="o-", color=colour, label=method)
            times = [seconds(by[k, method], "seconds_per_outer_step") for k in ks]
            right_panel.plot(ks, times, "o-", color=colour)
        left.set(title="accuracy, %", xlabel="virtual steps K")
        right_panel.set(title="seconds per outer step", xlabel="virtual steps K", yscale="log")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(many), fontsize=11)
