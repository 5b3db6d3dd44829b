"""What a run depends on is compared before anything is written; a finished one returns; one process has the folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import stress_settings
import torch
from runs import distance, records, state
from test_identities import Poorer
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.training.checkpoints import read_metrics
from mtl.fewshot.training.fingerprint import MAY_CHANGE
from mtl.tools.claim import claim, is_claimed
from mtl.tools.lock import FolderInUse, folder_lock

CONFIG = mtl.TrainingConfig(
    steps=3, tasks_per_step=2, warmup=1, validate_every=2, validation_tasks=2, save_every=1, self_check=False
)
STAGES = [mtl.fewshot.Stage(0, 2, 2, 1e-2), mtl.fewshot.Stage(1, 2, 2, 1e-3)]


class Gone(Exception):
    """The end of a run that is to be continued."""


class Until(Blobs):
    """Tasks that end before the last step, and count how often they are asked."""

    asked = 0

    def sample(self, index: int) -> mtl.Episode:
        Until.asked += 1
        if index >= 4:
            raise Gone
        return super().sample(index)


def learner(made: mtl.Backbone | None = None, **options: Any) -> mtl.MetaLearner:
    torch.manual_seed(0)
    made = made or backbone()
    return mtl.MetaLearner(made, options.pop("generator", None) or mtl.Static(made.sites, made.width), **options)


def train(folder: Path, tasks: Any = None, changed: mtl.MetaLearner | None = None, **config: Any) -> mtl.MetaLearner:
    changed = changed or learner(inner_steps=1)
    return mtl.train(changed, tasks or Blobs(), Blobs(), replace(CONFIG, **config), folder)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Gone):
        train(folder, Until())
    return folder


def refused(folder: Path, match: str, action: Callable[[Path], Any]) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=match) as raised:
        action(folder)
    assert "\n" not in str(raised.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", [f.name for f in fields(mtl.TrainingConfig) if f.name not in MAY_CHANGE])
def test_every_setting_of_the_configuration_is_compared(name, stopped):
    value = getattr(CONFIG, name)
    refused(stopped, rf"other settings \({name}: {value} there", lambda f: train(f, **{name: 2 * value}))


@pytest.mark.parametrize(
    ("tasks", "named"),
    [
        (Blobs(ways=2), "tasks.ways: 3 there, 2 now"),
        (Blobs(shots=1), "tasks.shots"),
        (Poorer(), "tasks.episodes.0.ways: nothing"),
    ],
)
def test_other_tasks_are_refused(tasks, named, stopped):
    refused(stopped, named, lambda f: train(f, tasks))


def test_the_network_is_compared_to_the_last_bit(stopped):
    def other(folder: Path) -> None:
        made = learner(inner_steps=1)
        with torch.no_grad():
            *_, last = made.backbone.model.parameters()
            last.view(torch.int32)[-1] ^= 1
        train(folder, changed=made)

    refused(stopped, r"backbone\.fingerprint: ", other)


def test_the_weights_that_a_run_begins_with_count_when_they_were_given(tmp_path):
    mtl.save_pretrained(train(tmp_path / "first"), tmp_path / "start")

    def begin(folder: Path, source: Path) -> mtl.MetaLearner:
        return train(folder, changed=mtl.from_pretrained(source, backbone_of_seed()))

    begin(tmp_path / "run", tmp_path / "start")
    begin(tmp_path / "run", tmp_path / "start")
    mtl.save_pretrained(train(tmp_path / "other", outer_lr=0.5), tmp_path / "other start")
    refused(tmp_path / "run", "generator_begins", lambda f: begin(f, tmp_path / "other start"))
    refused(tmp_path / "run", "generator_begins: '.*' there, None now", train)


def backbone_of_seed() -> mtl.Backbone:
    return learner().backbone


def test_a_learner_that_was_trained_in_place_is_still_the_same_run(tmp_path):
    made = learner(inner_steps=1, estimator=mtl.Windowed(window=1, mode="lazy", pull="finite-difference"))
    train(tmp_path / "run", changed=made, self_check=True)
    assert made.generator.given is None
    train(tmp_path / "run", changed=made, self_check=True)


def test_a_run_that_did_not_note_its_data_is_refused(stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    (run / "run.json").unlink()
    for file in (run / "checkpoints").iterdir():
        saved = torch.load(file, weights_only=True)
        saved["settings"] = {"steps": 3, "backbone": "0123"}
        del saved["kind"]
        from mtl.fewshot.training.checkpoints import _sealed

        file.write_bytes(_sealed(saved))
    refused(run, "mtl 0.1.0, which did not note its data", train)


def test_a_damaged_run_file_is_named(stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    for text in ("", "{", "[]", '{"identity": {}}'):
        (run / "run.json").write_text(text)
        refused(run, r"run\.json is damaged, or of another program", train)


def test_what_somebody_else_left_is_never_replaced(tmp_path):
    mtl.save_pretrained(learner(), tmp_path / "run" / "best")
    refused(tmp_path / "run", r"holds best and no run\.json.*another --out", train)


def test_a_finished_run_samples_nothing_and_writes_nothing(tmp_path):
    train(tmp_path / "run")
    before, Until.asked = contents(tmp_path / "run"), 0
    found = train(tmp_path / "run", Until())
    assert Until.asked == 0
    assert contents(tmp_path / "run") == before
    best = mtl.from_pretrained(tmp_path / "run" / "best", found.backbone)
    assert distance(found.generator.state_dict(), best.generator.state_dict()) == 0


def test_only_the_damaged_line_of_the_metrics_is_set_aside(tmp_path):
    with pytest.raises(Gone):
        train(tmp_path / "run", Until())
    log = tmp_path / "run" / "metrics.jsonl"
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + b"\xff garbage\n" + b'["step"]\n' + second)
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == [1, 2]
    with pytest.warns(UserWarning, match=r"2 of 4 lines do not tell .* such as line 2; they are in metrics-damaged"):
        train(tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]
    assert log.read_bytes().startswith(first + second)
    assert log.with_name("metrics-damaged.jsonl").read_bytes() == b'\xff garbage\n["step"]\n'


def test_a_damaged_check_of_the_estimator_is_made_again(tmp_path):
    config = {"self_check": True}
    estimator = mtl.Windowed(window=1, mode="lazy", pull="finite-difference")
    with pytest.raises(Gone):
        train(tmp_path / "run", Until(), learner(inner_steps=1, estimator=estimator), **config)
    path = tmp_path / "run" / "estimator.json"
    radius = json.loads(path.read_text())["radius"]
    path.write_text("{")
    made = learner(inner_steps=1, estimator=estimator)
    with pytest.warns(UserWarning, match=r"estimator\.json is damaged; the estimator is checked again"):
        train(tmp_path / "run", changed=made, **config)
    assert made.estimator.pull == mtl.metagrad.FiniteDifference(radius), "the checkpoint has it too"  # type: ignore[attr-defined]


# --- stages ----------------------------------------------------------------------------------------------------------


def train_stages(folder: Path, stages=STAGES, tasks: Any = None, **config: Any) -> mtl.MetaLearner:
    made = learner(inner_steps=1)
    return mtl.fewshot.train_stages(made, stages, tasks or Blobs(), Blobs(), replace(CONFIG, **config), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_stages(folder)
    return folder


def test_all_finished_stages_return_without_an_episode(finished):
    before, Until.asked = contents(finished), 0
    found = train_stages(finished, tasks=Until())
    assert Until.asked == 0
    assert contents(finished) == before
    final = mtl.from_pretrained(finished / "final", found.backbone)
    assert distance(found.generator.state_dict(), final.generator.state_dict()) == 0
    assert found.inner_steps == final.inner_steps == 1


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([STAGES[0], replace(STAGES[1], outer_lr=0.5)], r"outer_lr: 0\.001 there, 0\.5 now"),
        ([replace(STAGES[0], tasks_per_step=1), STAGES[1]], "tasks_per_step: 2 there, 1 now"),
        (STAGES[:1], "stages.1-inner-steps.steps: 2 there, nothing now"),
        ([*STAGES, mtl.fewshot.Stage(2, 1, 2, 1e-3)], "stages.2-inner-steps.steps: nothing there"),
    ],
    ids=["second", "first", "fewer", "more"],
)
def test_a_finished_result_is_never_replaced_by_that_of_other_stages(stages, named, finished):
    refused(finished, named, lambda f: train_stages(f, stages))


def test_all_stages_are_compared_before_the_first_writes(tmp_path):
    train(tmp_path / "run" / "1-inner-steps")
    refused(tmp_path / "run", "1-inner-steps holds a run with other settings", train_stages)


def test_a_result_of_another_run_is_not_replaced(finished, tmp_path):
    shutil.copytree(finished / "final", tmp_path / "run" / "final")
    refused(tmp_path / "run", r"holds final and no run\.json", train_stages)


# --- two in one folder -----------------------------------------------------------------------------------------------

TRAIN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_resuming
from mtl.tools.lock import FolderInUse
class Slow(test_resuming.Blobs):
    def sample(self, index):
        import time
        time.sleep(0.3)
        return super().sample(index)
try:
    test_resuming.train(Path(sys.argv[1]), Slow())
except FolderInUse as error:
    sys.exit(f"IN USE: {error}")
"""


def test_of_two_that_start_together_one_trains_and_one_says_so(tmp_path):
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "run"), *sys.path]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 1], [0, 0]), said
    if 1 in codes:
        told = said[codes.index(1)]
        assert f"IN USE: {tmp_path / 'run'} is in use by process {both[codes.index(0)].pid} on " in told
    train(tmp_path / "whole")
    assert distance(state(tmp_path / "run"), state(tmp_path / "whole")) == 0
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]


def test_a_folder_in_use_is_left_alone(stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    hold = "import sys, time\nfrom mtl.tools.lock import folder_lock\nwith folder_lock(sys.argv[1]):\n"
    command = [sys.executable, "-c", f"{hold}    print(flush=True)\n    time.sleep(60)", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = contents(run)
        with pytest.raises(FolderInUse, match=f"in use by process {holder.pid}"):
            train(run)
        assert contents(run) == before
        holder.kill()
    train(run)


def test_a_claim_is_for_good(tmp_path):
    assert not is_claimed(tmp_path, {"a": 1})
    with folder_lock(tmp_path):
        claim(tmp_path, {"a": 1, "b": (1, 2)})
    assert is_claimed(tmp_path, {"b": [1, 2], "a": 1})
    refused(
        tmp_path, r"other settings \(a: 1 there, 2 now; b: \[1, 2\] there, nothing now\)", lambda f: claim(f, {"a": 2})
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 3, 7])
def test_changed_settings_are_noticed_or_harmless(first, tmp_path):
    """A tenth of stress_settings.py each."""
    rows = stress_settings.main(tmp_path, first=first, every=10)
    assert len(rows) == 12
    assert [row for row in rows if not row[2]] == []


def test_no_split_is_added_to_the_folder_of_another_run(tmp_path):
    classes = ["ash", "birch", "cedar", "elm", "fir", "oak", "pine", "yew"]
    claim(tmp_path / "run", {"data": "glyphs"})
    found = mtl.data.load_or_make_split(tmp_path / "run" / "split.json", classes)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["run.json"]
    assert found == mtl.data.load_or_make_split(tmp_path / "own" / "split.json", classes)
    assert (tmp_path / "own" / "split.json").is_file()
