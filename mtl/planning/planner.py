"""Predict peak memory and time of every estimator, pull and choice of stored activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mtl.metagrad.estimators import Exact, FirstOrder, Rematerialised, StructuralZeroWarning
from mtl.metagrad.options import representatives
from mtl.metagrad.products import PULLS
from mtl.planning.advice import Change, changes
from mtl.planning.choices import Activations, activation_options, representative
from mtl.planning.measuring import Arithmetic, Counted, Trace
from mtl.planning.options import PlanOptions
from mtl.planning.work import takes_pull, with_pull, work
from mtl.planning.workbench import Workbench
from mtl.tools.progress import ProgressBar

GIB = 2**30


@dataclass(frozen=True)
class Predicted:
    """Predicted cost of one choice.

    Args:
        estimator: name of the estimator.
        pull: how second derivatives are evaluated; empty for an estimator without this option.
        activations: what a forward pass stores.
        gib: peak memory in GiB.
        gib_per_step: growth per further inner step.
        least: operations relative to unrolled MAML that stores everything.
        most: the same at high curvature, for estimators that depend on it.
        fits: whether ``gib`` is within the budget.
    """

    estimator: str
    pull: str
    activations: str
    gib: float
    gib_per_step: float
    least: float
    most: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """Predicted costs for one network and one size of episode.

    Args:
        options: of the planner.
        permanent_gib: GiB of weights, inputs, the generator and its optimiser.
        predicted: all choices; for each choice of activations, the reference first.
        refused: choices that cannot run without values, each with the reason.
        changes: changes of options, tried if nothing that trains through the inner loop fits.
    """

    options: PlanOptions
    permanent_gib: float
    predicted: tuple[Predicted, ...]
    refused: tuple[str, ...]
    changes: tuple[Change, ...]

    def find(self, estimator: str, pull: str, activations: str) -> Predicted | None:
        """The prediction for one choice; None if it was refused."""
        wanted = (estimator, pull, activations)
        return next((p for p in self.predicted if (p.estimator, p.pull, p.activations) == wanted), None)

    @property
    def fitting(self) -> list[Predicted]:
        """Choices within the budget, the fastest first, then by memory."""
        return sorted((p for p in self.predicted if p.fits), key=lambda p: (p.most, p.gib))


def plan(options: PlanOptions, progress: bool = True) -> Plan:
    """Predict peak memory and relative time of every estimator, pull and choice of stored activations.

    The estimators run on tensors without values: at most a configuration is downloaded, and no tensor is allocated.

    Args:
        progress: show a progress bar.

    Raises:
        ValueError: unknown network, or a size, number of blocks or length that it does not support.
    """
    bench = Workbench(options)
    stored = activation_options(options)
    bar = ProgressBar(total=len(stored) * len(RUN), show=progress, unit="run", desc=options.backbone)
    with bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", StructuralZeroWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # from torch's forward mode
        costs = [_measure(bench, activations, bar) for activations in stored]
    predicted = _rows(options, costs)
    fits = any(p.fits and p.pull for p in predicted)
    tried = () if fits else changes(options, bench.blocks, progress)
    refused = tuple(f"{r} ({c.activations.name})" for c in costs for r in c.refused)
    return Plan(options, bench.permanent / GIB, predicted, refused, tried)


LEANEST = Rematerialised("finite-difference")
RUN = (Exact(), FirstOrder(), Rematerialised("reverse"), Rematerialised("forward-over-reverse"), LEANEST)
"""Representatives of all estimators, see :func:`mtl.planning.choices.representative`."""


@dataclass(frozen=True)
class _Costs:
    """Measurements for one choice of activations."""

    activations: Activations
    traces: dict[str, Trace]
    arithmetic: Arithmetic
    refused: list[str]


def _measure(bench: Workbench, activations: Activations, bar: ProgressBar) -> _Costs:
    traces, pulls, refused = dict[str, Trace](), dict[str, tuple[int, int]](), list[str]()
    for estimator in RUN:
        counted = Counted(str(estimator.pull)) if isinstance(estimator, Rematerialised) else None
        try:
            run = with_pull(estimator, counted) if counted else estimator
            traces[repr(estimator)] = bench.trace(run, activations)
            if counted:
                pulls[counted.name] = counted.anchor, counted.product
        except (RuntimeError, NotImplementedError) as e:
            refused.append(f"{estimator!r}: {str(e).splitlines()[0]}")
        bar.update()
    return _Costs(activations, traces, traces[repr(FirstOrder())].arithmetic(pulls), refused)


def _rows(options: PlanOptions, costs: list[_Costs]) -> tuple[Predicted, ...]:
    rows = [row for cost in costs for row in _predict(options, cost)]
    unit = rows[0].most
    return tuple(replace(r, least=r.least / unit, most=r.most / unit) for r in rows)


def _predict(options: PlanOptions, cost: _Costs) -> Iterator[Predicted]:
    for name, estimator in representatives(options.window).items():
        least, most = work(estimator, options.inner_steps)
        for pull in PULLS if takes_pull(estimator) else ("",):
            trace = cost.traces.get(repr(representative(estimator, pull)))
            how = pull or "reverse"  # autograd's own backward pass is a reverse product too
            if trace and how in cost.arithmetic.pulls:
                gib, growth = trace.after(options.inner_steps) / GIB, trace.per_step / GIB
                low, high = (cost.arithmetic.total(w, how) for w in (least, most))
                yield Predicted(name, pull, cost.activations.name, gib, growth, low, high, gib <= options.budget)
