"""Sections about how good a run's generator is: in words, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mtl
from mtl.cli.report.elements import Html, escaped, folded, heading, joined, marked, paragraph, table
from mtl.cli.report.pages import markdown
from mtl.cli.report.pictures import figure, picture
from mtl.cli.report.runs import Run, Stage
from mtl.cli.report.shown import answers_of, shown_methods
from mtl.tools import (
    accuracy_figure,
    curves_figure,
    family_figure,
    mean_interval,
    paired_difference,
    reliability_figure,
)
from mtl.tools.comparison import MethodResult, Verdict
from mtl.tools.reliability import COVERAGE, Answers

MOST_FAMILIES, MOST_TABLES, MOST_CURVES = 100, 6, 4
MINUS = "\N{MINUS SIGN}"


def summaries(comparison: mtl.Comparison) -> list[str]:
    """What was found, in a sentence each for seen and for unseen families: the learner and the best baseline."""
    blocks = comparison.blocks() or {"": comparison}
    return [_summary(part, f"{comparison.setting}{', ' if name else ''}{name}") for name, part in blocks.items()]


def _summary(part: mtl.Comparison, setting: str) -> str:
    ours = part.row(shown_methods(part)[0])
    said = f"{setting}: {ours.method} is right on {_percent(ours)} of the queries"
    baselines = [r for r in part.baselines() if r is not ours]
    if not baselines:
        return f"{said}."
    best = baselines[0]
    difference, half = paired_difference(ours.accuracy, best.accuracy)
    words = f"{_points(difference, half)} points{', a tie' if not abs(difference) > half else ''}"
    return f"{said}, the best baseline, {best.method}, on {_percent(best)}: {words}, paired."


def results(run: Run) -> Html:
    """A table per number of shots, seen and unseen families apart; and the figure of all."""
    if not run.comparisons:
        return Html()
    parts = [_part(comparison) for comparison in run.comparisons[:MOST_TABLES]]
    draw = partial(accuracy_figure, run.comparisons[:MOST_TABLES])
    note = (
        "Accuracies are means over test episodes with their 95 % intervals. The lead is the reference minus the "
        "method, paired episode by episode; it is coloured where its interval excludes 0 (not corrected for many "
        "comparisons). Seconds are those of adapting to one task and answering its queries."
    )
    return joined(figure(draw, "accuracy of each method with its interval"), *parts, paragraph(note, "note"))


def _part(comparison: mtl.Comparison) -> Html:
    blocks = comparison.blocks() or {"": comparison}
    tables = [_table(part, f"{comparison.setting}{', ' if name else ''}{name}") for name, part in blocks.items()]
    families = comparison.by_family()
    if len(families) > 1:
        tables.append(folded("family by family", _family_table(comparison, families)))
    return joined(*tables)


def _table(part: mtl.Comparison, title: str) -> Html:
    known = [r.answers for r in part.rows]
    head = ["method", "", "accuracy in %", "lead of the reference", "s per task", "adapted values"]
    rows = [_line(part, row) for row in part.rows]
    if any(answers is not None for answers in known):
        head += ["ECE in %", f"accuracy of the surest {100 * COVERAGE:.0f} %"]
        rows = [[*line, *_sure(answers)] for line, answers in zip(rows, known, strict=True)]
    if any(r.tuned for r in part.rows):
        head, rows = [*head, "tuned"], [[*line, r.tuned] for line, r in zip(rows, part.rows, strict=True)]
    ours = [i for i, r in enumerate(part.rows) if r.kind == "ours"]
    return joined(heading(f"{title}: {len(part.families)} episodes"), table(head, rows, texts=2, ours=ours))


def _line(part: mtl.Comparison, row: MethodResult) -> list[str]:
    lead = "reference" if row.method == part.reference else _lead(part.verdict(row.method))
    costs = [f"{row.seconds_per_task:.3g}", f"{row.adapted_values:,}"]
    return [row.method, row.kind, _percent(row, unit=""), lead, *costs]


def _sure(answers: Answers | None) -> list[str]:
    if answers is None:
        return ["", ""]
    return [f"{100 * answers.ece[0]:.1f} ± {100 * answers.ece[1]:.1f}", f"{100 * answers.accuracy_at().mean():.1f}"]


def _family_table(comparison: mtl.Comparison, families: dict[str, mtl.Comparison]) -> Html:
    shown = list(families.items())[:MOST_FAMILIES]
    rows = [
        [f"{name} (unseen)" if name in comparison.unseen else name, *(_percent(r, unit="") for r in part.rows)]
        for name, part in shown
    ]
    hidden = len(families) - len(shown)
    note = f"{hidden} more families are in the csv file" if hidden else ""
    return table(["family", *(r.method for r in comparison.rows)], rows, caption=note)


def families(run: Run) -> Html:
    """Figures of several methods family by family."""
    several = [c for c in run.comparisons[:MOST_TABLES] if len(set(c.families)) > 1 and len(c.rows) > 1]
    draw: Callable[[mtl.Comparison], Html] = lambda c: figure(  # noqa: E731
        partial(_draw_families, c), f"{c.setting}: accuracy by family"
    )
    return joined(*(draw(c) for c in several))


def reliability(run: Run) -> Html:
    """How far probabilities can be trusted."""
    parts = []
    for found in run.comparisons[:MOST_TABLES]:
        if answers := answers_of(found, shown_methods(found)):
            draw = partial(reliability_figure, answers, title=found.setting)
            parts.append(figure(draw, f"{found.setting}: accuracy by confidence, error by coverage"))
    note = (
        "Probabilities are honest on the diagonal, and too sure below it; ECE is the mean distance from it. Beside it, "
        "the error among the surest answers, when the others are left to people."
    )
    return joined(*parts, paragraph(note, "note")) if parts else Html()


def _draw_families(comparison: mtl.Comparison, path: object) -> None:
    shown = shown_methods(comparison)
    others = [r.method for r in comparison.rows if r.method not in shown]
    family_figure(comparison, str(path), shown if len(shown) > 1 else [*shown, *others[:1]])


def training(run: Run) -> Html:
    """Loss and accuracy of every training."""
    parts = []
    for stage in run.stages[:MOST_CURVES]:
        parts.append(heading(f"{stage.name}: {int(stage.metrics[-1]['step']):,} steps{_best(stage)}"))
        if any(name.endswith(("loss", "accuracy")) for metrics in stage.metrics for name in metrics):
            parts.append(figure(partial(curves_figure, stage.metrics), f"loss and accuracy of {stage.name}"))
    return joined(*parts)


def _best(stage: Stage) -> str:
    found = [m["validation_accuracy"] for m in stage.metrics if "validation_accuracy" in m]
    return f", best validation accuracy {100 * max(found):.1f} %" if found else ""


def episodes(run: Run) -> Html:
    """Test episodes to look at, or to read."""
    image, page = run.folder / "episodes.png", run.folder / "episodes.md"
    parts = []
    if image.is_file():
        parts.append(picture(image, "test episodes: support examples and queries, with what was predicted"))
    if page.is_file():
        parts.append(markdown(page.read_text(encoding="utf-8", errors="replace")))
    return joined(*parts)


def _percent(row: MethodResult, unit: str = " %") -> str:
    mean, half = mean_interval(row.accuracy)
    return f"{100 * mean:.1f} ± {100 * half:.1f}{unit}" if half == half else f"{100 * mean:.1f}{unit}"


def _points(difference: float, half: float) -> str:
    said = f"{100 * difference:+.1f}".replace("-", MINUS)
    return f"{said} ± {100 * half:.1f}" if half == half else said


def _lead(verdict: Verdict) -> Html:
    said = _points(verdict.difference, verdict.half_width)
    colours = {"wins": "good", "loses": "bad"}
    return marked(said, colours[verdict.outcome]) if verdict.outcome in colours else escaped(said)


def names(comparisons: Sequence[mtl.Comparison]) -> list[str]:
    """Families of the test tasks."""
    return list(dict.fromkeys(name for c in comparisons for name in c.families))
