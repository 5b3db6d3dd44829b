"""Accuracy against the number of labels, and against seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import mtl
from mtl.tools.figures import ACCENT, GREY, INK, RIGHT, WRONG, figure_file

OURS = (ACCENT, RIGHT, WRONG, INK)
MARKS = "Dosv^<>pX*dPh"


def shots_figure(comparisons: Sequence[mtl.Comparison], path: Path) -> None:
    """A row of panels for each block of families: accuracy by labels per class, and by seconds of one task.

    Args:
        comparisons: with ``N-shot`` in their settings.
    """
    points: dict[str, dict[str, list[tuple[int, float, float, str]]]] = {}
    for comparison in comparisons:
        shots = int(re.findall(r"(\d+)-shot", comparison.setting)[0])
        for block, part in (comparison.blocks() or {"all families": comparison}).items():
            for row in part.rows:
                point = shots, 100 * float(row.accuracy.mean()), row.seconds_per_task, row.kind
                points.setdefault(block, {}).setdefault(row.method, []).append(point)
    with figure_file(path, 18, 6 * len(points)) as figure:
        panels = figure.subplots(len(points), 2, squeeze=False)
        for line, (block, methods) in zip(panels, points.items(), strict=True):
            for i, (name, found) in enumerate(methods.items()):
                by_shots = {p[0]: p for p in reversed(found)}  # the comparison on most tasks counts
                shots, accuracy, seconds, kinds = zip(*sorted(by_shots.values()), strict=True)
                colour = OURS[i % len(OURS)] if kinds[0] == "ours" else GREY
                look = {"color": colour, "marker": MARKS[i % len(MARKS)], "label": name}
                line[0].plot(shots, accuracy, **look)
                line[1].plot(seconds, accuracy, **look)
            line[0].set(xscale="log", xlabel="labels per class", ylabel="accuracy in %", title=block)
            line[0].set_xticks(sorted({p[0] for found in methods.values() for p in found}))
            line[0].set_xticks([], minor=True)
            line[0].get_xaxis().set_major_formatter("{x:.0f}")
            line[1].set(xscale="log", xlabel="seconds of one task", title="by seconds, one point per number of labels")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
