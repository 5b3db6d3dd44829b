"""Predicting peak memory and time of every choice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm import tqdm

from mtl.metagrad.estimators import Exact, FirstOrder, Rematerialised, StructuralZeroWarning
from mtl.metagrad.options import representatives
from mtl.metagrad.products import PULLS
from mtl.planning.advice import Change, changes
from mtl.planning.choices import Keeping, keepings, representative
from mtl.planning.config import Config
from mtl.planning.measuring import Arithmetic
from mtl.planning.networks import META
from mtl.planning.work import takes_pull, work
from mtl.planning.workplace import Workplace

GIB = 2**30


@dataclass(frozen=True)
class Predicted:
    """One choice.

    Args:
        estimator: its name.
        pull: how second derivatives are evaluated; empty for an estimator that does not choose.
        keeping: what is kept of a forward pass.
        gib: peak memory.
        gib_per_step: what one more inner step adds.
        least: time by arithmetic, unrolled MAML that keeps everything is 1.
        most: the same where curvature is high, for estimators that look at it.
        fits: whether it stays within the budget.
    """

    estimator: str
    pull: str
    keeping: str
    gib: float
    gib_per_step: float
    least: float
    most: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What the choices cost for one network and one size of episode.

    Args:
        config: of what.
        standing_gib: weights, inputs, the generator and its optimiser: what is there all the time.
        predicted: every choice; for each way of keeping, the reference first.
        refused: choices that could not be run without values, and why.
        changes: what was tried because nothing that trains through the inner loop fits.
    """

    config: Config
    standing_gib: float
    predicted: tuple[Predicted, ...]
    refused: tuple[str, ...]
    changes: tuple[Change, ...]

    def of(self, estimator: str, pull: str, keeping: str) -> Predicted | None:
        """One choice, None where it is refused."""
        wanted = (estimator, pull, keeping)
        return next((p for p in self.predicted if (p.estimator, p.pull, p.keeping) == wanted), None)

    @property
    def fitting(self) -> list[Predicted]:
        """What fits, the fastest first; at equal time what needs less."""
        return sorted((p for p in self.predicted if p.fits), key=lambda p: (p.most, p.gib))


def plan(config: Config, progress: bool = True) -> Plan:
    """Predict peak memory and relative time of every estimator, pull and way of keeping activations.

    Nothing is downloaded but a configuration, and no tensor is allocated: the estimators run on fake ones.

    Args:
        progress: show a bar.

    Raises:
        ValueError: a network, a size, a number of blocks or a length that does not exist.
    """
    place, elsewhere = Workplace(config), _elsewhere(config)
    kept = keepings(config)
    bar = tqdm(total=len(kept) * len(RUN), disable=not progress, unit="run", desc=config.backbone)
    with bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", StructuralZeroWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # of torch's own forward mode
        costs = [_measure(place, elsewhere, keeping, bar) for keeping in kept]
    predicted = _rows(config, costs)
    fits = any(p.fits and p.pull for p in predicted)
    tried = () if fits else changes(config, place.blocks, progress)
    refused = tuple(f"{r} ({c.keeping.name})" for c in costs for r in c.refused)
    return Plan(config, place.standing / GIB, predicted, refused, tried)


LEANEST = Rematerialised("finite-difference")
FORWARD = Rematerialised("forward-over-reverse")
RUN = (Exact(), FirstOrder(), Rematerialised("reverse"), FORWARD, LEANEST)
"""What stands for all estimators, see :func:`mtl.planning.choices.representative`."""


@dataclass(frozen=True)
class _Costs:
    """Of one way of keeping: peaks (for K steps, and what one more adds) by estimator, and arithmetic."""

    keeping: Keeping
    peaks: dict[str, tuple[int, int]]
    arithmetic: Arithmetic
    refused: list[str]


def _elsewhere(config: Config) -> Workplace | str:
    """Where forward-mode differentiation works without values, or why it does not for this network."""
    try:
        return Workplace(config, META)
    except (RuntimeError, NotImplementedError) as e:
        return str(e).splitlines()[0]


def _measure(place: Workplace, elsewhere: Workplace | str, keeping: Keeping, bar: tqdm) -> _Costs:
    cost = _Costs(keeping, {}, place.arithmetic(keeping), [])
    for estimator in RUN:
        at = elsewhere if estimator == FORWARD else place
        try:
            if isinstance(at, str):
                raise NotImplementedError(at)
            peak = at.peak(estimator, keeping, at.config.inner_steps)
            if isinstance(estimator, Rematerialised):
                pull = str(estimator.pull)
                cost.arithmetic.pulls[pull] = at.pull_arithmetic(keeping, pull)
            cost.peaks[repr(estimator)] = peak
        except (RuntimeError, NotImplementedError) as e:
            cost.refused.append(f"{estimator!r}: {str(e).splitlines()[0]}")
        bar.update()
    return cost


def _rows(config: Config, costs: list[_Costs]) -> tuple[Predicted, ...]:
    rows = [row for cost in costs for row in _of_keeping(config, cost)]
    unit = rows[0].most
    return tuple(replace(r, least=r.least / unit, most=r.most / unit) for r in rows)


def _of_keeping(config: Config, cost: _Costs) -> Iterator[Predicted]:
    for name, estimator in representatives(config.window).items():
        least, most = work(estimator, config.inner_steps)
        for pull in PULLS if takes_pull(estimator) else ("",):
            peak = cost.peaks.get(repr(representative(estimator, pull)))
            how = pull or "reverse"  # what autograd walks back through is a reverse product as well
            if peak and how in cost.arithmetic.pulls:
                fits = peak[0] <= config.budget * GIB
                low, high = (cost.arithmetic.of(w, how) for w in (least, most))
                yield Predicted(name, pull, cost.keeping.name, peak[0] / GIB, peak[1] / GIB, low, high, fits)
