"""Compare methods on the same episodes: intervals, paired differences, tables (in %), CSV and JSON (0 .. 1)."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mtl.tools.files import atomic_write, write_csv
from mtl.tools.method_result import Kind, MethodResult
from mtl.tools.reliability import COVERAGE, Answers
from mtl.tools.text_tables import aligned

__all__ = ["Comparison", "Kind", "MethodResult", "Verdict", "mean_interval", "paired_difference", "verdicts"]

ALL = "all"  # name of the pooled episodes of all families
SEEN, UNSEEN = "seen families", "unseen families"


def mean_interval(x: ArrayLike) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of ``x`` ``(n,)``: ``1.96 std / sqrt(n)`` with the unbiased ``std``.

    The normal 1.96 is the field's convention; below about 30 episodes the interval is too narrow. The half width is NaN
    for ``n < 2``, and the mean is NaN for ``n = 0``.
    """
    values = np.asarray(x, dtype=np.float64)
    if values.size < 2:
        return (values.item() if values.size else math.nan), math.nan
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(values.size))


def paired_difference(reference: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of ``reference - other``, episode by episode.

    Episodes differ in difficulty far more than methods do, and that part cancels here: methods whose own intervals
    overlap can still differ clearly. Both are ``(episodes,)``, the same episodes in the same order.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"cannot pair accuracies {a.shape} with {b.shape}: both need the same episodes in one order")
    return mean_interval(a - b)


@dataclass(frozen=True)
class Verdict:
    """Whether the reference beats ``method`` on the episodes of one family, or of ``"all"``.

    ``difference`` is the mean of reference minus method, paired, in ``-1 .. 1``; ``half_width`` is its 95 %
    interval's. ``outcome`` is the *reference's*; ``"ties"`` when the interval contains 0, or there is one episode.
    """

    method: str
    family: str
    difference: float
    half_width: float
    outcome: Literal["wins", "ties", "loses"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results of several methods on the same episodes of one setting.

    Args:
        setting: for example ``"5-way 1-shot"``.
        families: family of each episode's task, ``(episodes,)``.
        rows: one per method, in the order of the tables.
        reference: the method from which the others are subtracted.
        unseen: families that nothing was trained on; tables list them apart. There may be others among them.

    Raises:
        ValueError: lengths differ, names repeat or the reference is unknown.
    """

    setting: str
    families: tuple[str, ...]
    rows: tuple[MethodResult, ...]
    reference: str
    unseen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        methods, episodes = [r.method for r in self.rows], len(self.families)
        if unequal := [f"{r.method!r} has {r.accuracy.size}" for r in self.rows if r.accuracy.size != episodes]:
            raise ValueError(f"{self.setting}: {episodes} episodes have a family, but {', '.join(unequal)} accuracies")
        if len(set(methods)) < len(methods):
            raise ValueError(f"{self.setting}: each method needs its own name, got {methods}")
        if self.reference not in methods:
            raise ValueError(f"{self.setting}: reference {self.reference!r} is not one of {methods}")
        if ALL in self.families and len(set(self.families)) > 1:
            raise ValueError(f"{self.setting}: a family cannot be called {ALL!r}, which names all families together")

    def row(self, method: str) -> MethodResult:
        """The row of one method; ``KeyError`` if there is none."""
        return {r.method: r for r in self.rows}[method]

    def baselines(self) -> list[MethodResult]:
        """The rows of baselines, the most accurate first."""
        return sorted((r for r in self.rows if r.kind == "baseline"), key=lambda r: -r.accuracy.mean())

    def by_family(self) -> dict[str, Comparison]:
        """A comparison for each family, in order of first appearance."""
        return {name: self._restricted({name}) for name in dict.fromkeys(self.families)}

    def blocks(self) -> dict[str, Comparison]:
        """The families that were trained on and those that were not, ``"seen families"`` and ``"unseen families"``.

        Nothing when all are of one sort.
        """
        unseen = set(self.families) & set(self.unseen)
        seen = set(self.families) - unseen
        return {SEEN: self._restricted(seen), UNSEEN: self._restricted(unseen)} if seen and unseen else {}

    def _restricted(self, families: Container[str]) -> Comparison:
        mask = np.array([family in families for family in self.families])
        rows = tuple(r.only(mask) for r in self.rows)
        return replace(self, families=tuple(f for f in self.families if f in families), rows=rows)

    def parts(self) -> dict[str, Comparison]:
        """All episodes under ``"all"``, followed by each family if there are several.

        ``"all"`` gives each episode, not each family, the same weight.
        """
        return {ALL: self} | (self.by_family() if len(set(self.families)) > 1 else {})

    def verdict(self, method: str, family: str = ALL) -> Verdict:
        """The reference against ``method`` on all these episodes, labelled with ``family``."""
        difference, half_width = paired_difference(self.row(self.reference).accuracy, self.row(method).accuracy)
        # Equality up to rounding is a tie, and so is a single episode, whose half width is NaN.
        clear = abs(difference) > half_width + 1e-12
        outcome = ("wins" if difference > 0 else "loses") if clear else "ties"
        return Verdict(method, family, difference, half_width, outcome)

    def table(self, markdown: bool = False) -> str:
        """An aligned table in percent: accuracy, also per family if there are several, paired difference, costs.

        Seen and unseen families have a table each, and one line per family follows, see :meth:`family_table`.
        """
        if blocks := self.blocks():
            tables = [
                replace(c, setting=f"{c.setting}, {name}")._table({ALL: c}, markdown) for name, c in blocks.items()
            ]
            return "\n".join([*tables, self.family_table(markdown)])
        return self._table(self.parts(), markdown)

    def family_table(self, markdown: bool = False) -> str:
        """An aligned table in percent: one line per family, one column per method."""
        head = ["family", *(r.method for r in self.rows)]
        lines = [
            [f"{name} (unseen)" if name in self.unseen else name, *(_percent(r.accuracy) for r in part.rows)]
            for name, part in self.by_family().items()
        ]
        return f"{aligned([head, *lines], markdown)}\n\n{self.setting}; accuracies in % ± a 95 % interval.\n"

    def probability_table(self, markdown: bool = False) -> str:
        """An aligned table in percent of the methods that have probabilities; empty where none has.

        Calibration error (ECE: 15 bins of equal width over all queries), the accuracy of the surest 90 % of the answers
        of each task and what that is more than the accuracy of all, and the mean error over all such shares (AURC).
        """
        parts = self.blocks() or {"": self}
        tables = [_probability_table(name, part, markdown) for name, part in parts.items()]
        return "\n".join(table for table in tables if table)

    def _table(self, parts: Mapping[str, Comparison], markdown: bool) -> str:
        heads = ["method", "accuracy ± 95 %", *list(parts)[1:], "difference  ", "s/task", "adapted values"]
        heads += ["tuned"] if any(r.tuned for r in self.rows) else []
        note = f"{self.setting}, {len(self.families)} episodes; accuracies in % ± a 95 % interval.\nDifference: "
        note += f"{self.reference} minus method, paired; * its interval excludes 0, uncorrected for many comparisons."
        return f"{aligned([heads, *(_cells(parts, r)[: len(heads)] for r in self.rows)], markdown)}\n\n{note}\n"

    def to_csv(self, path: str | Path) -> None:
        """Write one line per method and family, ``"all"`` and :meth:`blocks` too, with accuracies in ``0 .. 1``."""
        parts = [(ALL, self), *self.blocks().items(), *self.by_family().items()]
        write_csv([_record(name, part, row) for name, part in parts for row in part.rows], path)

    def to_json(self, path: str | Path) -> None:
        """Write everything, including each episode's accuracy; :meth:`from_json` restores it exactly."""
        rows = [r.to_json() for r in self.rows]
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(vars(self) | {"rows": rows}, allow_nan=False), encoding="utf-8")

    @staticmethod
    def from_json(path: str | Path) -> Comparison:
        """Load a file of :meth:`to_json`; ``ValueError`` if it is none, or invalid."""
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content["setting"], str):
                raise TypeError("'setting' is no string")
            names = {key: _strings(key, content.get(key, [])) for key in ("families", "unseen")}
            parts: dict[str, Any] = {"rows": tuple(map(MethodResult.from_json, content["rows"])), **names}
            return Comparison(**content | parts)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved comparison: {error}") from error


def _strings(key: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{key!r} is no list of strings")
    return tuple(values)


def verdicts(comparison: Comparison, per_family: bool = True) -> list[Verdict]:
    """The reference against each other method: on all episodes and, if there are several, on each family.

    The intervals are not corrected for many comparisons: one true tie in twenty shows as a win or a loss.
    """
    parts = comparison.parts() if per_family else {ALL: comparison}
    others = [r.method for r in comparison.rows if r.method != comparison.reference]
    return [part.verdict(method, name) for method in others for name, part in parts.items()]


def _cells(parts: Mapping[str, Comparison], row: MethodResult) -> list[str]:
    """One line of the table: percentages to a tenth, the far more precise paired differences to a hundredth."""
    accuracies = [_percent(part.row(row.method).accuracy) for part in parts.values()]
    v = parts[ALL].verdict(row.method)
    # A space in place of the star aligns the column's decimal points.
    difference = f"{100 * v.difference:+.2f} ± {100 * v.half_width:.2f} {' ' if v.outcome == 'ties' else '*'}"
    if row.method == parts[ALL].reference:
        difference = "reference  "
    return [row.method, *accuracies, difference, f"{row.seconds_per_task:.3g}", f"{row.adapted_values:,}", row.tuned]


def _probability_table(name: str, part: Comparison, markdown: bool) -> str:
    cells = [_probability_cells(row, row.answers) for row in part.rows if row.answers is not None]
    if not cells:
        return ""
    heads = ["method", "accuracy ± 95 %", "ECE ± 95 %", f"surest {COVERAGE:.0%} ± 95 %", "gain ± 95 %", "AURC"]
    setting = f"{part.setting}, {name}" if name else part.setting
    note = f"{setting}, {len(part.families)} episodes; in %. ECE: distance of probability and accuracy, in 15 bins."
    note += "\nSurest: accuracy of the answers left when each task rejects its least sure ones; gain: over all answers."
    return f"{aligned([heads, *cells], markdown)}\n\n{note}\n"


def _probability_cells(row: MethodResult, answers: Answers) -> list[str]:
    (ece, half), kept = answers.ece, answers.accuracy_at()
    difference = (round(100 * v, 1) + 0.0 for v in paired_difference(kept, row.accuracy))  # 0.0 rather than -0.0
    gain = "{:+.1f} ± {:.1f}".format(*difference)
    ece = f"{100 * ece:.1f} ± {100 * half:.1f}"
    return [row.method, _percent(row.accuracy), ece, _percent(kept), gain, f"{100 * answers.aurc.mean():.1f}"]


def _percent(accuracy: ArrayLike) -> str:
    mean, half = mean_interval(accuracy)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def _record(family: str, part: Comparison, row: MethodResult) -> dict[str, Any]:
    """One line of the CSV file: the verdict and its data; the reference ties with itself."""
    mean, half = mean_interval(row.accuracy)
    record = {"setting": part.setting, "method": row.method, "kind": row.kind, "family": family}
    record |= {"episodes": row.accuracy.size, "accuracy": mean, "accuracy_half_width": half}
    record |= {"reference": part.reference} | vars(part.verdict(row.method, family))
    record |= {"tuned": row.tuned} | _probability_record(row.answers)
    return record | {"seconds_per_task": row.seconds_per_task, "adapted_values": row.adapted_values}


def _probability_record(answers: Answers | None) -> dict[str, Any]:
    if answers is None:
        return {}
    (ece, half), (kept, kept_half) = answers.ece, mean_interval(answers.accuracy_at())
    record = {"ece": ece, "ece_half_width": half, "accuracy_at_90": kept, "accuracy_at_90_half_width": kept_half}
    return record | {"aurc": float(answers.aurc.mean())}
