"""A plan in words: a table for people, one for machines, and what follows from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

from mtl.planning.choices import UNROLLED
from mtl.planning.planner import Plan, Predicted
from mtl.tools.files import replacing

HEAD = ("estimator", "pull")


def table(plan: Plan, markdown: bool = False) -> str:
    """A line per estimator and pull, after the reference the fastest first; for each way of keeping memory and time."""
    names = list(dict.fromkeys(p.keeping for p in plan.predicted))
    reference, *others = plan.predicted
    pairs = list(dict.fromkeys((p.estimator, p.pull) for p in (reference, *sorted(others, key=_slowness))))
    lines = [[*HEAD, *(word for name in names for word in (f"{name}, GiB", "time"))]]
    for estimator, pull in pairs:
        found = [plan.of(estimator, pull, name) for name in names]
        lines.append([estimator, pull or "-", *(word for p in found for word in _words(p))])
    return "\n".join(_markdown(lines) if markdown else _plain(lines))


def summary(plan: Plan) -> str:
    """Of what, how to read the table, what fits, and what to change."""
    return "\n".join(["", *_of_what(plan), "", *_verdict(plan)])


def write_csv(plan: Plan, path: Path) -> None:
    """One line per choice."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Predicted)])
        writer.writeheader()
        writer.writerows(asdict(p) for p in plan.predicted)


def write_markdown(plan: Plan, path: Path) -> None:
    """The table and what follows from it."""
    with replacing(path) as draft:
        text = f"{table(plan, markdown=True)}\n{summary(plan)}\n"
        draft.write_text(text, encoding="utf-8")


def steps_within(plan: Plan, predicted: Predicted) -> int:
    """The most inner steps that stay within the budget; 0 when not even one does."""
    first = predicted.gib - (plan.config.inner_steps - 1) * predicted.gib_per_step
    return max(0, math.floor((plan.config.budget - first) / predicted.gib_per_step) + 1)


def _of_what(plan: Plan) -> Iterator[str]:
    c = plan.config
    options = [f"last_k={c.last_k}"] if c.last_k else []
    size = [f"{c.image_size} px"] if c.image_size else []
    setting = [f"{c.ways}-way {c.shots}-shot", f"{c.queries} queries per class", f"{c.inner_steps} inner steps"]
    setting += [f"{c.tasks_per_chunk} task(s) per chunk", c.precision, f"sites {c.sites}", *size, *options]
    yield f"{c.backbone}: {', '.join(setting)}; {_size(plan.standing_gib)} GiB are weights and inputs."
    yield f"GiB: predicted peak, all in all; in brackets what exceeds the budget of {c.budget:g} GiB."
    yield f"time: by arithmetic, {UNROLLED} that keeps everything is 1; a range where it depends on curvature."
    yield from (f"not predicted: {r}" for r in plan.refused)


def _verdict(plan: Plan) -> Iterator[str]:
    for p in (p for p in plan.predicted if p.estimator == UNROLLED):
        most = steps_within(plan, p)
        fits = f"at most {most} inner steps fit" if most else "not one step fits"
        more = f"{_size(p.gib_per_step)} more for each inner step"
        yield f"{UNROLLED}, keeping {p.keeping}: {_size(p.gib)} GiB, {more}; {fits}"
    swept = [p for p in plan.fitting if p.pull]
    if swept:
        whole = [p for p in swept if p.estimator == "rematerialised"]
        yield f"fastest that fits: {_said(swept[0])}"
        yield from (f"fastest that fits and walks back through every step: {_said(p)}" for p in whole[:1])
        yield f"leanest: {_said(min(swept, key=lambda p: (round(p.gib, 2), p.most)))}"
        return
    budget = f"{plan.config.budget:g} GiB"
    yield f"Nothing that trains through the inner loop fits into {budget}. With finite-difference pulls, and"
    for change in plan.changes:
        fits = "fits" if change.fits else "does not fit"
        yield f"    {change.options}, keeping {change.keeping}: {_size(change.gib)} GiB, {fits}"
    if not any(c.fits for c in plan.changes):
        yield "Nothing tried is enough: take a smaller network, shorter inputs or a larger device."


def _size(gib: float) -> str:
    """Three digits."""
    return f"{gib:.0f}" if gib >= 100 else f"{gib:.3g}"


def _slowness(p: Predicted) -> tuple[float, float]:
    return round(p.most, 2), p.gib


def _said(p: Predicted) -> str:
    return f"{p.estimator}, {p.pull}, keeping {p.keeping}: {_size(p.gib)} GiB, time {_range(p)}"


def _words(p: Predicted | None) -> tuple[str, str]:
    if p is None:
        return "-", "-"
    size = _size(p.gib)
    return size if p.fits else f"({size})", _range(p)


def _range(p: Predicted) -> str:
    return f"{p.least:.2f}" if f"{p.least:.2f}" == f"{p.most:.2f}" else f"{p.least:.2f} .. {p.most:.2f}"


def _plain(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        words = [w.ljust(n) if i < len(HEAD) else w.rjust(n) for i, (w, n) in enumerate(zip(line, widths, strict=True))]
        yield "  ".join(words).rstrip()


def _markdown(lines: list[list[str]]) -> Iterator[str]:
    rule = ["---"] * len(HEAD) + ["---:"] * (len(lines[0]) - len(HEAD))
    yield from (f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
