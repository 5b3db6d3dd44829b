"""Stop small runs, and try to continue them with other settings: each is noticed, or proven harmless.

    python tests/stress_settings.py FOLDER

There are three runs: of images on a vision transformer, of images on a convolutional network of which all levels are
read, and of texts. Each is stopped before its last step. Then it is continued more than a hundred times, from a copy of
its folder, with one thing changed: a setting, the data, the split, a weight or a buffer of the network, the
preprocessing. Most are to be refused by one line that names what changed, with every byte of the folder and every time
of change as they were. The others are to end as the uninterrupted run does. A minute on one core; test_resuming.py does
three tenths of it.
"""

from __future__ import annotations

import argparse
import io
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from changed_settings import changes, worlds
from runs import distance, state
from small_runs import Gone, World

ROUNDING = 2e-4  # Adam magnifies that of a sum in another order, see docs/running-long.md


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def go(world: World, run: Path, until: int | None = None) -> None:
    """Without bars and warnings."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        world.go(run, until)


def attempt(world: World, run: Path, expected: str | None, whole: Path) -> tuple[bool, str]:
    """Whether the continued run did what it should, and what it did."""
    before = contents(run)
    try:
        go(world, run)
    except ValueError as error:
        told = str(error)
        if contents(run) != before:
            return False, f"refused, but the folder was changed: {told}"
        if "\n" in told or "other settings" not in told:
            return False, f"refused in other words: {told}"
        named = [part.split(":")[0] for part in told.partition("settings (")[2].partition("); go back")[0].split("; ")]
        shown = ", ".join(named[:2])
        return expected is not None and any(expected in name for name in named), f"refused: {shown}"
    apart = distance(state(run), state(whole))
    return (
        expected is None and apart < ROUNDING,
        f"the same result within {apart:.0e}" if apart else "the same, bitwise",
    )


def main(folder: Path, only: str = "", first: int = 0, every: int = 1) -> list[tuple[str, str, bool, str]]:
    """One row per change: of which run, what was changed, whether all was right, and what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    begun, rows = time.perf_counter(), []
    made = worlds(folder)
    for name, world in made.items():
        go(world, folder / "whole" / name)
        try:
            go(world, folder / "stopped" / name, until=3 * world.config.tasks_per_step)
        except Gone:
            continue
        raise AssertionError(f"{name} was not stopped")
    for i, (name, what, expected, change) in enumerate(changes(folder)[first::every]):
        if only not in f"{name}, {what}":
            continue
        run = shutil.copytree(folder / "stopped" / name, folder / "trials" / f"{i}")
        place = folder / "changed" / f"{i}"
        place.parent.mkdir(exist_ok=True)
        world = replace(made[name], **change) if isinstance(change, Mapping) else change(made[name], place)
        right, happened = attempt(world, run, expected, folder / "whole" / name)
        rows.append((name, what, right, happened))
        print(f"{'ok   ' if right else 'WRONG'} {name:7} {what:36} {happened}", flush=True)
    noticed = sum("refused" in happened for *_, happened in rows)
    print(f"{len(rows)} changes: {noticed} refused, {len(rows) - noticed} harmless, "
          f"{sum(not right for *_, right, _ in rows)} wrong; {time.perf_counter() - begun:.0f} s")  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="changes whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raise SystemExit(not all(right for *_, right, _ in main(options.folder, options.only)))
