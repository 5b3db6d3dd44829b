"""Suggest changes when nothing fits: try each one alone, then more and more of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mtl.metagrad.estimators import Rematerialised
from mtl.planning.choices import activation_options
from mtl.planning.options import PlanOptions
from mtl.planning.workbench import Workbench
from mtl.tools.progress import ProgressBar

GIB = 2**30


@dataclass(frozen=True)
class Change:
    """Result of a change of options.

    Args:
        options: as on the command line, such as ``--last-k 12``.
        activations: what a forward pass stores, whichever needs less.
        gib: peak memory of a backward sweep with finite-difference pulls.
        fits: whether ``gib`` is within the budget.
    """

    options: str
    activations: str
    gib: float
    fits: bool


def changes(options: PlanOptions, blocks: int, progress: bool) -> tuple[Change, ...]:
    """Try each change alone; if none fits, combine more and more of them until one does.

    Args:
        blocks: number of modulated blocks without changes.
    """
    single = list(_singles(options, blocks))
    tried = [_try(options, [c]) for c in ProgressBar(single, show=progress, unit="run", desc="single changes")]
    if any(c.fits for c in tried):
        return tuple(tried)
    for count in ProgressBar(range(2, len(single) + 1), show=progress, unit="run", desc="combined changes"):
        tried.append(_try(options, single[:count]))
        if tried[-1].fits:
            break
    return tuple(tried)


def _singles(options: PlanOptions, blocks: int) -> Iterator[dict[str, int | str]]:
    """In ascending order of what they cost the user."""
    if options.tasks_per_chunk > 1:
        yield {"tasks_per_chunk": 1}
    if (size := options.examples_per_chunk or options.ways * options.shots) > 1:
        yield {"examples_per_chunk": -(-size // 4)}
    if options.precision != "bf16-stored":
        yield {"precision": "bf16-stored"}
    fewer = dict.fromkeys((blocks // 2, blocks // 4, 1))
    for last in (k for k in fewer if 0 < k < blocks):
        yield {"last_k": last}


def _try(options: PlanOptions, steps: list[dict[str, int | str]]) -> Change:
    merged: dict[str, int | str] = {}
    for step in steps:
        merged |= step
    changed = replace(options, **merged)  # type: ignore[arg-type]
    bench, sweep = Workbench(changed), Rematerialised("finite-difference")
    peaks = {a.name: bench.peak(sweep, a, options.inner_steps) for a in activation_options(changed)[1:]}
    activations, peak = min(peaks.items(), key=lambda pair: pair[1])
    words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in merged.items())
    return Change(words, activations, peak / GIB, peak <= options.budget * GIB)
