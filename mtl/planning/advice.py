"""What to change when nothing fits: changes that are tried, one by one and then together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm import tqdm

from mtl.metagrad.estimators import Rematerialised
from mtl.planning.choices import keepings
from mtl.planning.config import Config
from mtl.planning.workplace import Workplace

GIB = 2**30


@dataclass(frozen=True)
class Change:
    """Something that was tried.

    Args:
        options: of the command line, such as ``--last-k 12``.
        keeping: what is kept of a forward pass, whichever needs less.
        gib: peak memory of a sweep with finite-difference pulls.
        fits: whether it stays within the budget.
    """

    options: str
    keeping: str
    gib: float
    fits: bool


def changes(config: Config, blocks: int, progress: bool) -> tuple[Change, ...]:
    """Each change by itself; where none is enough, more and more of them together until it is.

    Args:
        blocks: how many blocks are modulated now.
    """
    single = list(_singles(config, blocks))
    tried = [_try(config, [c]) for c in tqdm(single, disable=not progress, unit="run", desc="what to change")]
    if any(c.fits for c in tried):
        return tuple(tried)
    together: list[dict[str, int | str]] = []
    for step in tqdm(single, disable=not progress, unit="run", desc="together"):
        together.append(step)
        if len(together) > 1:
            tried.append(_try(config, together))
            if tried[-1].fits:
                break
    return tuple(tried)


def _singles(config: Config, blocks: int) -> Iterator[dict[str, int | str]]:
    """From what costs least to what costs most."""
    if config.tasks_per_chunk > 1:
        yield {"tasks_per_chunk": 1}
    if (size := config.examples_per_chunk or config.ways * config.shots) > 1:
        yield {"examples_per_chunk": -(-size // 4)}
    if config.precision != "bf16-stored":
        yield {"precision": "bf16-stored"}
    fewer = dict.fromkeys((blocks // 2, blocks // 4, 1))
    for last in (k for k in fewer if 0 < k < blocks):
        yield {"last_k": last}


def _try(config: Config, steps: list[dict[str, int | str]]) -> Change:
    merged: dict[str, int | str] = {}
    for step in steps:
        merged |= step
    changed = replace(config, **merged)  # type: ignore[arg-type]
    place, swept = Workplace(changed), Rematerialised("finite-difference")
    peaks = {k.name: place.peak(swept, k, config.inner_steps)[0] for k in keepings(changed)[1:]}
    keeping, peak = min(peaks.items(), key=lambda pair: pair[1])
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in merged.items())
    return Change(options, keeping, peak / GIB, peak <= config.budget * GIB)
