"""A plan as text: its table and its summary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from mtl.planning.choices import UNROLLED
from mtl.planning.planner import Plan, Predicted
from mtl.tools.files import atomic_write

HEAD = ("estimator", "pull")


def table(plan: Plan, markdown: bool = False) -> str:
    """A line per estimator and pull, the reference and then the fastest first, with memory and time by activations."""
    names = list(dict.fromkeys(p.activations for p in plan.predicted))
    reference, *others = plan.predicted
    pairs = list(dict.fromkeys((p.estimator, p.pull) for p in (reference, *sorted(others, key=_slowness))))
    lines = [[*HEAD, *(word for name in names for word in (f"{name}, GiB", "time"))]]
    for estimator, pull in pairs:
        costs = [plan.find(estimator, pull, name) for name in names]
        lines.append([estimator, pull or "-", *(word for p in costs for word in _cells(p))])
    return "\n".join(_markdown(lines) if markdown else _plain(lines))


def summary(plan: Plan) -> str:
    """The setting, how to read the table, what fits, and what to change."""
    return "\n".join(["", *_setting(plan), "", *_verdict(plan)])


def write_markdown(plan: Plan, path: Path) -> None:
    """Write the table and the summary."""
    with atomic_write(path) as draft:
        draft.write_text(f"{table(plan, markdown=True)}\n{summary(plan)}\n", encoding="utf-8")


def steps_within(plan: Plan, predicted: Predicted) -> int:
    """The largest number of inner steps within the budget; 0 if not even one fits."""
    first = predicted.gib - (plan.options.inner_steps - 1) * predicted.gib_per_step
    return max(0, math.floor((plan.options.budget - first) / predicted.gib_per_step) + 1)


def _setting(plan: Plan) -> Iterator[str]:
    c = plan.options
    options = [f"last_k={c.last_k}"] if c.last_k else []
    size = [f"{c.image_size} px"] if c.image_size else []
    setting = [f"{c.ways}-way {c.shots}-shot", f"{c.queries} queries per class", f"{c.inner_steps} inner steps"]
    setting += [f"{c.tasks_per_chunk} task(s) per chunk", c.precision, f"sites {c.sites}", *size, *options]
    yield f"{c.backbone}: {', '.join(setting)}; weights and inputs take {_size(plan.permanent_gib)} GiB."
    yield f"GiB: predicted peak, weights included; in brackets if it exceeds the budget of {c.budget:g} GiB."
    yield f"time: operations relative to {UNROLLED}, keeping everything; a range if they depend on curvature."
    yield from (f"not predicted: {r}" for r in plan.refused)


def _verdict(plan: Plan) -> Iterator[str]:
    for p in (p for p in plan.predicted if p.estimator == UNROLLED):
        most = steps_within(plan, p)
        fits = f"at most {most} inner steps fit" if most else "not one step fits"
        more = f"{_size(p.gib_per_step)} more for each inner step"
        yield f"{UNROLLED}, keeping {p.activations}: {_size(p.gib)} GiB, {more}; {fits}"
    sweeps = [p for p in plan.fitting if p.pull]
    if sweeps:
        exact = [p for p in sweeps if p.estimator == "rematerialised"]
        yield f"fastest that fits: {_line(sweeps[0])}"
        yield from (f"fastest that fits and gives the exact gradient: {_line(p)}" for p in exact[:1])
        yield f"least memory: {_line(min(sweeps, key=lambda p: (round(p.gib, 2), p.most)))}"
        return
    budget = f"{plan.options.budget:g} GiB"
    yield f"Nothing that trains through the inner loop fits into {budget}. With finite-difference pulls and"
    for change in plan.changes:
        fits = "fits" if change.fits else "does not fit"
        yield f"    {change.options}, keeping {change.activations}: {_size(change.gib)} GiB, {fits}"
    if not any(c.fits for c in plan.changes):
        yield "None of these fits: choose a smaller network, smaller inputs or a larger device."


def _size(gib: float) -> str:
    """Three digits."""
    return f"{gib:.0f}" if gib >= 100 else f"{gib:.3g}"


def _slowness(p: Predicted) -> tuple[float, float]:
    return round(p.most, 2), p.gib


def _line(p: Predicted) -> str:
    return f"{p.estimator}, {p.pull}, keeping {p.activations}: {_size(p.gib)} GiB, time {_range(p)}"


def _cells(p: Predicted | None) -> tuple[str, str]:
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
