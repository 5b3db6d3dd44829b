"""Kill a training run at random moments, again and again, and see that nothing shows afterwards.

    python tests/stress_kills.py FOLDER --kills 20 --seed 0

Every life of the run is a process of its own that ends by SIGKILL: half of them after a random time, half at a random
moment within the writing of a file, on a disk that is made slow. After each kill the last whole checkpoint must be at
most ``save_every`` steps behind. At the end, generator, optimiser, ``best/`` and ``metrics.jsonl`` must be as in a run
that nobody killed. A minute for 20 kills; test_faults.py does 5.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import train_blobs
from train_blobs import PROCESSES

from mtl.fewshot.training.checkpoints import Checkpoints

SAVE_EVERY = 2  # of train_blobs
STEPS_PER_KILL = 5
SLOW = 0.03  # seconds per write, flush and move


def live(folder: Path, steps: int, slow: bool) -> None:
    if slow:
        slow_down_the_disk()
    train_blobs.main(folder, steps, 0.02)


def slow_down_the_disk() -> None:
    def write(path: Path, contents) -> None:
        with path.open("wb") as f:
            f.write(contents[: len(contents) // 2])
            f.flush()
            time.sleep(SLOW)
            f.write(contents[len(contents) // 2 :])

    def delayed(call):
        def late(*args):
            time.sleep(SLOW)
            return call(*args)

        return late

    Path.write_bytes = write  # type: ignore[method-assign]
    os.fsync, os.replace = delayed(os.fsync), delayed(os.replace)


def unfinished(folder: Path) -> set[Path]:
    """What is being written, or was when the kill came; but for the probe with which every life begins."""
    return {path for path in folder.rglob(".*-*") if not path.name.startswith(".writable")}


def kill_once(folder: Path, steps: int, in_writing: bool, chance: random.Random) -> bool:
    """Whether the kill left something half done."""
    process = PROCESSES.Process(target=live, args=(folder, steps, in_writing))
    process.start()
    if in_writing:
        time.sleep(chance.uniform(0.2, 1.0))
        before = unfinished(folder)
        while process.is_alive() and not unfinished(folder) - before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 3 * SLOW))
    else:
        time.sleep(chance.uniform(0.05, 1.0))
    assert process.is_alive(), f"the run ended by itself (exit code {process.exitcode}): give it more steps"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return bool(unfinished(folder))


def steps_lost(folder: Path) -> int:
    """Steps that were taken and must be taken again."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged checkpoint
        state = Checkpoints(folder).newest()
    log = folder / "metrics.jsonl"
    taken = log.read_text().count("\n") if log.is_file() else 0
    return taken - (state["step"] if state else 0)


def outcome(folder: Path) -> tuple[dict, list[dict], dict[str, bytes]]:
    state = Checkpoints(folder).newest()
    assert state is not None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = {p.name: p.read_bytes() for p in sorted((folder / "best").iterdir())}
    return state, [{k: v for k, v in r.items() if k != "seconds"} for r in records], best


def same(a: object, b: object) -> bool:
    """Bitwise, through all levels."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    steps = STEPS_PER_KILL * kills
    whole, killed, chance = folder / "whole", folder / "killed", random.Random(seed)
    begin = time.perf_counter()
    finish(whole, steps)
    half_done, lost = 0, []
    for k in range(kills):
        half_done += kill_once(killed, steps, k % 2 == 1, chance)
        lost.append(steps_lost(killed))
    finish(killed, steps)
    (state, records, best), (state_whole, records_whole, best_whole) = outcome(killed), outcome(whole)
    summary = {
        "kills": kills,
        "left something half done": half_done,
        "steps": steps,
        "most steps lost": max(lost),
        "steps lost": lost,
        "each step logged once": [r["step"] for r in records] == list(range(1, steps + 1)),
        "metrics the same": records == records_whole,
        "generator, optimizer and schedule the same, bitwise": same(state, state_whole),
        "best/ the same, bitwise": best == best_whole,
        "nothing half done left": not unfinished(killed),
        "seconds": round(time.perf_counter() - begin),
    }
    for name, value in summary.items():
        print(f"{name}: {value}")
    assert max(lost) <= SAVE_EVERY
    assert all(v is not False for v in summary.values())
    return summary


def finish(folder: Path, steps: int) -> None:
    process = PROCESSES.Process(target=live, args=(folder, steps, False))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{folder} ended with {process.exitcode}"


def by_hand(run: Callable[[Path, int, int], object], description: str | None) -> None:
    """The command line of a script that kills: where, how often, and which random moments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.folder.resolve(), options.kills, options.seed)


if __name__ == "__main__":
    by_hand(main, __doc__)
