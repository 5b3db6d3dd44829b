"""Two real processes do what one does. Launched as people launch them, on gloo; all short runs in one launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from runs import distance, records
from train_processes import MOVING, SCENARIOS, STILL, run

import mtl

pytestmark = pytest.mark.slow  # three interpreters to start, and two again
SCRIPT = Path(__file__).parent / "train_processes.py"
STILL_ONES = ("four", "three", "one", "workers", "poisoned")
TOGETHER = (*STILL_ONES, "moving", "moving, poisoned", "checked", "first half", "second half")


def launch(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    # `--cpu --num_processes 2` would silently start one process (accelerate issue 2741); the script checks.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += ["--main_process_port", "0", str(SCRIPT), str(folder), "2", *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def one(name: str, folder: Path) -> dict:
    return run(name, folder, Accelerator(cpu=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, {name: one(name, folder / name) for name in (*STILL_ONES, "moving", "moving, poisoned")}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    one("first half", folder / "second half")  # to be gone on with by two
    done = launch(folder, *TOGETHER)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("name", STILL_ONES)
def test_the_meta_gradient_is_that_of_one_process(name, alone, two):
    """Four tasks, three and one on two processes: uneven batches, and an empty one."""
    expected, ranks = alone[1][name]["gradients"], [found[name]["gradients"] for found in two[1]]
    assert len(expected) == (3 if name == "poisoned" else STILL.steps)
    for step, gradient in enumerate(expected):
        assert (gradient != 0).float().mean() > 0.5
        for found in ranks:
            difference = (found[step] - gradient).abs().max().item()
            print(f"{name}, step {step + 1}: {difference:.1e} of {gradient.abs().max():.2f}")
            assert difference < 1e-6
        assert torch.equal(ranks[0][step], ranks[1][step])


def test_the_meta_gradient_is_the_mean_over_the_finite_episodes(two):
    """The weights stand still, so the steps add up: episodes 0 to 3 together, without one of them, and each alone."""
    four, three, one_each, poisoned = (two[1][0][n]["gradients"] for n in ("four", "three", "one", "poisoned"))
    total = 4 * four[0]
    assert (3 * three[0] + one_each[3] - total).abs().max() < 1e-6
    assert (3 * poisoned[0] + one_each[1] - total).abs().max() < 1e-6
    assert (sum(one_each) - total).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["four", "three", "one", "moving"])
def test_every_episode_is_sampled_once(name, two):
    config = SCENARIOS[name].config
    asked = [found[name]["asked"] for found in two[1]]
    assert sorted(asked[0] + asked[1]) == list(range(config.steps * config.tasks_per_step))
    validated = [found[name]["validated"] for found in two[1]]
    rounds = config.steps // config.validate_every
    assert sorted(validated[0] + validated[1]) == sorted(rounds * list(range(config.validation_tasks)))
    assert validated[0]
    assert validated[1]


@pytest.mark.parametrize("name", [*STILL_ONES, "moving", "moving, poisoned"])
def test_metrics_and_validation_are_those_of_one_process(name, alone, two):
    expected, found = records(alone[0] / name), records(two[0] / name)
    assert [r["step"] for r in found] == list(range(1, SCENARIOS[name].config.steps + 1))
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        same = {k: pytest.approx(v, rel=1e-3, abs=1e-4) for k, v in a.items() if k != "seconds"}
        assert {k: v for k, v in b.items() if k != "seconds"} == same
    best = [json.loads((f / name / "best" / "config.json").read_text())["extra"] for f in (alone[0], two[0])]
    assert best[0] == pytest.approx(best[1])


@pytest.mark.parametrize("name", TOGETHER)
def test_all_processes_end_with_the_same_generator(name, two):
    a, b = (found[name]["generator"] for found in two[1])
    assert distance(a, b) == 0


def test_bad_episodes_are_left_out_in_all_processes_alike(two):
    assert [r["skipped"] for r in records(two[0] / "poisoned")] == [1, 2, 4, 0]
    assert all(torch.isfinite(g).all() for found in two[1] for g in found["poisoned"]["gradients"])
    assert "gradient_norm" not in records(two[0] / "poisoned")[2]


def test_the_main_process_alone_decides_on_the_estimator_and_writes(two):
    main, other = two[1]
    assert main["checked"]["radius"] == other["checked"]["radius"] != 123.0, "what the other process finds"
    assert json.loads((two[0] / "checked" / "estimator.json").read_text())["radius"] == main["checked"]["radius"]
    assert other["written"] == []
    assert any("checkpoints" in event for event in main["written"]), "the test can see writing"


def test_a_run_goes_on_with_another_number_of_processes(alone, two):
    """From two processes to one and from one to two, each stopped after step 3 and so taken up after step 2."""
    folder = two[0]
    back = one("second half", folder / "first half")
    assert back["asked"] == list(range(2 * MOVING.tasks_per_step, 6 * MOVING.tasks_per_step))
    to_two = [found["second half"]["asked"] for found in two[1]]
    assert sorted(to_two[0] + to_two[1]) == back["asked"]
    assert_like_uninterrupted(folder / "first half", back, alone)
    assert_like_uninterrupted(folder / "second half", two[1][0]["second half"], alone)


def assert_like_uninterrupted(folder: Path, found: dict, alone: tuple[Path, dict]) -> None:
    assert [r["step"] for r in records(folder)] == [1, 2, 3, 4, 5, 6]
    whole = alone[1]["moving"]["generator"]
    print(f"{folder.name}: {distance(found['generator'], whole):.1e}")
    # Adam divides by the gradient's own size, which magnifies rounding where a gradient is nearly zero.
    assert distance(found["generator"], whole) < 2e-4
    for a, b in zip(records(alone[0] / "moving"), records(folder), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(tmp_path, alone):
    done = launch(tmp_path, "dying")
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    run_folder = tmp_path / "dying"
    assert [p.name for p in (run_folder / "checkpoints").iterdir()] == ["step-00000002.pt"]
    found = one("moving", run_folder)
    assert isinstance(found["generator"], dict)
    assert_like_uninterrupted(run_folder, found, alone)
    assert mtl.from_pretrained(run_folder / "best")
