"""Kill a whole recipe at random moments, again and again, and see that nothing shows afterwards.

    python tests/stress_recipe_kills.py FOLDER --kills 50 --seed 0

Training of the generator and of its static control, tuning, the comparison, tables and pictures: every life is a
process of its own that ends by SIGKILL, half of them after a random time, half at a random moment within the writing of
a file, on a disk that is made slow; the first half of all at any time, the second in the comparison or later. Lives are
forked from a process that has imported everything. After each kill no more than ``SAVE_EVERY`` training steps may be
lost, no result of the comparison once it is there, and every table and checkpoint must be whole. A recipe that ends
before the next kill is compared, and another begins. At the end all files must be those of a recipe that nobody killed,
but for seconds, and the same command returns without writing anything. Ten minutes for 50 kills;
tests/recipes/test_few_shot_vision.py does 2.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "recipes")]

import few_shot_vision  # noqa: E402
from stress_kills import SLOW, by_hand, same, slow_down_the_disk, unfinished  # noqa: E402

import mtl  # noqa: E402
from mtl.fewshot.evaluation.results import FILE  # noqa: E402
from mtl.fewshot.training.checkpoints import METRICS, Checkpoints  # noqa: E402
from mtl.tools.lock import HOLDER  # noqa: E402

REPORT = "report.html"

PROCESSES = multiprocessing.get_context("fork")  # importing all of it takes as long as a life
SAVE_EVERY = 50  # of few_shot.meta_train
LONGEST = 4.0  # seconds until a kill
TIMES = re.compile(r'("?(?:seconds|seconds_per_task|begun)"?: )("[^"]*"|[-\d.e]+)')
RESULTS = Path("comparison") / FILE
LOGS = "tensorboard"  # a log of its own for each life


def settings(out: Path) -> few_shot_vision.Config:
    return few_shot_vision.Config(
        out=str(out), shots=(2, 1), queries=2, warm_steps=70, steps=2, inner_steps=1, tasks_per_step=4,
        validation_tasks=4, tuning_episodes=4, test_episodes=120, kept_episodes=8,
        baselines=("ncm", "logistic", "ridge_all", "head", "modulation"),
    )  # fmt: skip


def live(out: Path, slow: bool) -> None:
    """One life of the recipe. The folder's log says why it ended, if that was not a kill."""
    os.setsid()  # no signal of the terminal
    torch.set_num_threads(1)
    with Path(f"{out}.log").open("a") as log, redirect_stderr(log), redirect_stdout(log):
        if slow:
            slow_down_the_disk()
        try:
            few_shot_vision.main(settings(out))
        except BaseException:
            traceback.print_exc()
            raise


def born(out: Path, slow: bool = False) -> Any:
    process = PROCESSES.Process(target=live, args=(out, slow))
    process.start()
    return process


def finish(out: Path) -> None:
    process = born(out)
    process.join()
    assert process.exitcode == 0, f"{out} ended with {process.exitcode}: see {out}.log"


def kill_once(out: Path, in_writing: bool, late: bool, chance: random.Random) -> bool:
    """Whether a kill came before the recipe was finished; if it is to be late, in the comparison or after it."""
    process = born(out, in_writing)
    if late:
        while process.is_alive() and not (out / RESULTS).is_file():
            time.sleep(0.01)
    if in_writing:
        process.join(chance.uniform(0.1, LONGEST))
        before = unfinished(out)
        while process.is_alive() and not unfinished(out) - before:
            time.sleep(0.001)
        process.join(chance.uniform(0, 3 * SLOW))
    else:
        process.join(chance.uniform(0.1, LONGEST))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"{out} ended with {process.exitcode}: see {out}.log"
    return process.exitcode != 0


@dataclass
class Watch:
    """What was there after the kill before, none of which may be lost."""

    steps: dict[str, int] = field(default_factory=dict)
    results: set[str] = field(default_factory=set)
    most_lost: int = 0

    def look(self, out: Path) -> None:
        for folder in (p.parent for p in out.rglob("checkpoints")):
            state = Checkpoints(folder).newest()
            step, name = (state["step"] if state else 0), str(folder.relative_to(out))
            log = folder / METRICS
            taken = log.read_text().count("\n") if log.is_file() else 0
            self.most_lost = max(self.most_lost, taken - step)
            assert step >= self.steps.get(name, 0), f"{name} fell back from step {self.steps[name]} to {step}"
            self.steps[name] = step
        file = out / RESULTS
        there = file.read_text().splitlines(keepends=True) if file.is_file() else []
        lines = {line for line in there if line.endswith("\n")}  # what a kill cut short is measured again
        assert self.results <= lines, f"{len(self.results - lines)} results of the comparison are gone"
        self.results = lines
        for table in out.glob("*-shot.json"):
            mtl.Comparison.from_json(table)
        for facts in (*out.glob("[!.]*.json"), *out.glob("*/[!.]*.json")):
            assert facts.name == HOLDER or json.loads(facts.read_text())


def outcome(out: Path) -> dict[str, Any]:
    """All files of a finished recipe, without seconds, logs, and the page that shows both.

    And without the name of who held a folder: it stays where a kill came between the end of a stage and letting go, and
    nobody reads it unless the folder is held.
    """
    found: dict[str, Any] = {}
    for path in sorted(
        p for p in out.rglob("*") if p.is_file() and LOGS not in p.parts and p.name not in (HOLDER, REPORT)
    ):
        name = str(path.relative_to(out))
        if path.suffix == ".pt":
            found[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".csv":
            found[name] = [line.split(",")[:-2] for line in path.read_text().splitlines()]  # without seconds
        elif path.name == FILE:
            records = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = sorted(
                json.dumps({k: v for k, v in r.items() if k not in ("seconds", "check")}) for r in records
            )
        elif path.suffix in (".json", ".jsonl"):
            found[name] = TIMES.sub(r"\1", path.read_text()).replace(str(out), "")
        elif path.name == "curves.png" or path.suffix not in (".png", ".lock"):
            found[name] = path.read_bytes()
        else:
            found[name] = path.suffix  # a picture of seconds, or a lock
    return found


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    begin, chance = time.perf_counter(), random.Random(seed)
    whole = folder / "whole"
    folder.mkdir(parents=True, exist_ok=True)
    finish(whole)
    expected, lives, done, compared, lost, left, again = outcome(whole), 0, 0, 0, 0, 0, 0.0
    while done < kills:
        lives += 1
        out, watch = folder / f"killed {lives}", Watch()
        while done < kills and kill_once(out, done % 2 == 1, 2 * done >= kills, chance):
            done += 1
            compared += (out / RESULTS).is_file()
            left += bool(unfinished(out))
            watch.look(out)
        finish(out)
        watch.look(out)
        found = outcome(out)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        assert not (other := [name for name in found if not same(found[name], expected[name])]), f"{other} differ"
        assert not unfinished(out), "nothing half done is left"
        lost = max(lost, watch.most_lost)
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
        begun = time.perf_counter()
        finish(out)
        again = time.perf_counter() - begun
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before, "finished is finished"
    summary = {
        "kills": done,
        "of these in the comparison and later": compared,
        "recipes": lives,
        "left something half done": left,
        "most training steps lost": lost,
        "results of the comparison lost": 0,
        "files of each recipe": len(expected),
        "all files the same": True,
        "seconds of a finished recipe": round(again, 1),
        "seconds": round(time.perf_counter() - begin),
    }
    for name, value in summary.items():
        print(f"{name}: {value}")
    assert lost <= SAVE_EVERY
    return summary


if __name__ == "__main__":
    by_hand(main, __doc__)
