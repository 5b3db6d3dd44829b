"""The outer loop: it learns, survives kills, leaves out what is not finite, and does not depend on how it is cut up."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import train_blobs
from runs import distance, lines, records, state
from tiny import Blobs, backbone

import mtl

CONFIG = mtl.TrainingConfig(steps=6, tasks_per_step=4, warmup=1, validate_every=3, validation_tasks=4, save_every=2)


def fresh(**options) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    return mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2, **options)


def start(folder: Path, pause: float = 0.0) -> BaseProcess:
    """Twelve steps in a process of its own."""
    process = train_blobs.PROCESSES.Process(target=train_blobs.main, args=(folder, 12, pause))
    process.start()
    return process


def test_it_learns(tmp_path):
    def loss(learner):
        [(_, e)] = mtl.stack_by_shape([Blobs().sample(i) for i in range(1000, 1040)])
        adapted = learner.adapt(e.support)
        return learner.problem(e).outer_loss(adapted.weights, adapted.meta).mean()

    config = replace(CONFIG, steps=40, outer_lr=1e-2, validate_every=40, save_every=40)
    learner = fresh()
    before = loss(learner)
    assert loss(mtl.train(learner, Blobs(), Blobs(), config, tmp_path / "run")) < before - 0.02


def test_chunks_do_not_change_the_result(tmp_path):
    for chunk in (1, 3, 4):
        mtl.train(fresh(), Blobs(), Blobs(), replace(CONFIG, tasks_per_chunk=chunk, steps=2), tmp_path / str(chunk))
    whole = state(tmp_path / "4")
    # Adam divides by the gradient's own size, which magnifies rounding where a gradient is nearly zero.
    assert max(distance(state(tmp_path / c), whole) for c in ("1", "3")) < 2e-4


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    log = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(3):
        process, reached = start(tmp_path / "killed", 0.25), lines(log)
        while lines(log) < max(3, reached + 2):
            assert process.is_alive()
            time.sleep(0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for folder in ("killed", "whole"):
        process = start(tmp_path / folder)
        process.join()
        assert process.exitcode == 0
    assert distance(state(tmp_path / "killed"), state(tmp_path / "whole")) == 0
    assert [r["step"] for r in records(tmp_path / "killed")] == list(range(1, 13))
    names = [(tmp_path / run / "best" / "generator.safetensors").read_bytes() for run in ("killed", "whole")]
    assert names[0] == names[1]


def test_non_finite_episodes_are_left_out(tmp_path):
    config = replace(CONFIG, steps=1)
    with pytest.warns(UserWarning, match=r"step 1: an episode of the family 'family 1' has a non-finite loss"):
        mtl.train(fresh(), Blobs(poisoned=(1, 5)), Blobs(), config, tmp_path / "poisoned")
    [record] = records(tmp_path / "poisoned")
    assert record["skipped"] == 1
    assert torch.isfinite(torch.cat([v.flatten() for v in state(tmp_path / "poisoned").values()])).all()

    class Three:
        """The finite episodes of that step alone."""

        def sample(self, index):
            return Blobs().sample((0, 2, 3)[index])

    mtl.train(fresh(), Three(), Blobs(), replace(config, tasks_per_step=3), tmp_path / "three")
    assert distance(state(tmp_path / "poisoned"), state(tmp_path / "three")) < 2e-4


@pytest.mark.filterwarnings("ignore:step")
def test_nothing_finite_stops_the_run(tmp_path):
    with pytest.raises(mtl.fewshot.NonFiniteLosses, match=r"last 2 steps.*lower outer_lr"):
        mtl.train(fresh(), Blobs(poisoned=tuple(range(99))), Blobs(), replace(CONFIG, patience=2), tmp_path / "run")


def test_another_run_in_the_folder_is_refused_and_a_finished_one_returns(tmp_path):
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step-00000006.pt"
    before = last.stat().st_mtime_ns
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "run")
    assert last.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other settings.*outer_lr: 0.001 there, 0.5 now"):
        mtl.train(fresh(), Blobs(), Blobs(), replace(CONFIG, outer_lr=0.5), tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings.*estimator"):
        mtl.train(fresh(estimator=mtl.FirstOrder()), Blobs(), Blobs(), CONFIG, tmp_path / "run")


def test_the_best_generator_is_kept(tmp_path):
    trained = mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "run")
    best = max(r["validation_accuracy"] for r in records(tmp_path / "run") if "validation_accuracy" in r)
    [row] = mtl.evaluate(trained, Blobs(), episodes=CONFIG.validation_tasks, progress=False).rows
    assert row.accuracy.mean() == pytest.approx(best)


@pytest.mark.parametrize("name", ["steps", "tasks_per_step", "save_every"])
def test_bad_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        replace(CONFIG, **{name: 0})


class Interrupted(Blobs):
    """Tasks that stop coming, as if the machine went away."""

    def sample(self, index: int) -> mtl.Episode:
        if index >= 4 * CONFIG.tasks_per_step:
            raise InterruptedError
        return super().sample(index)


def interrupted(folder: Path) -> None:
    with pytest.raises(InterruptedError):
        mtl.train(fresh(), Interrupted(), Blobs(), CONFIG, folder)
    assert [r["step"] for r in records(folder)] == [1, 2, 3, 4]


def test_a_best_generator_lost_to_a_kill_is_found_again(tmp_path):
    # Only the final validation can write another.
    interrupted(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["extra"]["step"] == 6


def test_drafts_of_killed_savings_are_removed(tmp_path):
    run = tmp_path / "run"
    interrupted(run)
    drafts = [
        run / name
        for name in ("checkpoints/.step-00000006-0123abcd.pt", ".metrics-0123abcd.jsonl", ".estimator-0123abcd.json")
    ]
    others = [run / name for name in (".step-00000006-0123abcd.pt", ".other-0123abcd.pt", ".best-0123abcd.txt")]
    for file in [*drafts, *others]:
        file.touch()
    with pytest.raises(ValueError, match="other settings"):
        mtl.train(fresh(), Blobs(), Blobs(), replace(CONFIG, outer_lr=0.5), run)
    assert all(path.exists() for path in drafts)
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, run)
    assert not any(path.exists() for path in drafts)
    assert all(path.exists() for path in others)


def test_a_torn_line_of_metrics_is_dropped(tmp_path):
    interrupted(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as f:
        f.write('{"step": 5, "lo')
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "run")
    mtl.train(fresh(), Blobs(), Blobs(), CONFIG, tmp_path / "whole")
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert distance(state(tmp_path / "run"), state(tmp_path / "whole")) == 0


def test_a_gradient_that_overflows_in_the_generator_moves_nothing(tmp_path):
    learner = fresh()
    before = {k: v.clone() for k, v in learner.generator.state_dict().items()}
    learner.generator.get_parameter("base").register_hook(lambda g: g * float("inf"))
    mtl.train(learner, Blobs(), Blobs(), replace(CONFIG, steps=1), tmp_path / "run")
    assert distance(state(tmp_path / "run"), before) == 0
    assert "gradient_norm" not in records(tmp_path / "run")[0]


def test_metrics_are_json_with_one_validation_task_too(tmp_path):
    mtl.train(fresh(), Blobs(), Blobs(), replace(CONFIG, steps=1, validation_tasks=1), tmp_path / "run")
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_backbone_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    learner = fresh()
    learner.backbone.load_args = None
    with pytest.raises(ValueError, match="not made by load_backbone"):
        mtl.train(learner, Blobs(), Blobs(), CONFIG, tmp_path / "run")


@pytest.mark.parametrize("windows", [1, 3])
def test_a_non_finite_support_set_is_left_out_too(tmp_path, windows):
    class Poisoned(Blobs):
        def sample(self, index: int) -> mtl.Episode:
            episode = super().sample(index)
            if index == 1:
                episode.support.map(lambda v: v.fill_(float("nan")) if v.is_floating_point() else v)
            return episode

    learner = fresh(estimator=mtl.Windowed(window=2))
    learner.inner_steps = 2 * windows
    with pytest.warns(UserWarning, match="is left out"):
        mtl.train(learner, Poisoned(), Blobs(), replace(CONFIG, steps=1), tmp_path / "run")
    assert records(tmp_path / "run")[0]["skipped"] == 1


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.0}, {"outer_lr": -1.0}, {"weight_decay": float("nan")}, {"workers": -1}, {"warmup": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"TrainingConfig.{next(iter(wrong))}="):
        replace(CONFIG, **wrong)


def test_the_estimator_is_checked_before_the_first_step(tmp_path, capsys):
    learner = fresh(estimator=mtl.Windowed(window=2, mode="lazy", pull="finite-difference"))
    mtl.train(learner, Blobs(), Blobs(), replace(CONFIG, steps=1), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "estimator.json").read_text())
    assert found["radius"] in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    assert learner.estimator.pull == mtl.metagrad.FiniteDifference(found["radius"]), "by name it is calibrated"
    assert found["cosine"].keys() == {"scale", "shift", "log_lr"}
    assert 0.5 < found["cosine"]["scale"] <= 1 + 1e-6
    printed = capsys.readouterr().out
    assert "cosine to exact" in printed
    assert "docs/glossary.md" in printed

    (tmp_path / "run" / "estimator.json").write_text(json.dumps(found | {"radius": 0.123}))
    again = fresh(estimator=mtl.Windowed(window=2, mode="lazy", pull="finite-difference"))
    mtl.train(again, Blobs(), Blobs(), replace(CONFIG, steps=1), tmp_path / "run")
    assert again.estimator.pull == mtl.metagrad.FiniteDifference(0.123), (
        "a continued run keeps the radius that it began with"
    )


def test_cheaper_products_are_recommended_where_they_agree(tmp_path, capsys, monkeypatch):
    for name, good in (("a", 0.99), ("b", 1.1)):
        monkeypatch.setattr("mtl.fewshot.training.check.AS_GOOD", good)
        learner = fresh(estimator=mtl.Windowed(window=2))
        mtl.train(learner, Blobs(), Blobs(), replace(CONFIG, steps=1), tmp_path / name)
        assert ("--pull one-sided-difference agrees" in capsys.readouterr().out) == (good < 1)


def test_a_poor_estimator_and_a_cliff_are_told_of_once(tmp_path):
    torch.manual_seed(0)
    b = backbone()
    generator = mtl.SupportConditioned(b.sites, b.width, hidden=16, step_size=5.0)
    learner = mtl.MetaLearner(b, generator, inner_steps=4, estimator=mtl.Windowed(window=4, mode="exact-forward"))
    with pytest.warns(UserWarning, match="past the cliff") as caught:
        mtl.train(learner, Blobs(), Blobs(), replace(CONFIG, steps=2, step_size_lr=0.0), tmp_path / "run")
    told = [str(w.message) for w in caught]
    assert sum("points elsewhere than the exact gradient" in t for t in told) == 1
    assert sum("past the cliff" in t for t in told) == 1
    assert all(r["past_cliff"] > 0.5 for r in records(tmp_path / "run"))


def test_stages_are_runs_one_after_the_other(tmp_path):
    stages = [mtl.fewshot.Stage(0, 3, 2, 1e-2), mtl.fewshot.Stage(1, 0, 2, 1e-2), mtl.fewshot.Stage(2, 2, 3, 1e-3)]
    found = mtl.fewshot.train_stages(fresh(), stages, Blobs(), Blobs(), CONFIG, tmp_path / "stages")
    learner = fresh()
    learner.inner_steps = 0
    first = replace(CONFIG, steps=3, tasks_per_step=2, outer_lr=1e-2, validate_every=200)
    generator = mtl.train(learner, Blobs(), Blobs(), first, tmp_path / "first").generator
    learner = mtl.MetaLearner(learner.backbone, generator, inner_steps=2)
    second = replace(first, steps=2, tasks_per_step=3, outer_lr=1e-3)
    expected = mtl.train(learner, Blobs(), Blobs(), second, tmp_path / "second")
    assert distance(found.generator.state_dict(), expected.generator.state_dict()) == 0
    assert found.inner_steps == 2
    assert sorted(p.name for p in (tmp_path / "stages").iterdir()) == [
        "0-inner-steps",
        "2-inner-steps",
        "final",
        "run.json",
        "run.lock",
    ]
    with pytest.raises(ValueError, match="two stages share a folder"):
        mtl.fewshot.train_stages(fresh(), [stages[0]] * 2, Blobs(), Blobs(), CONFIG, tmp_path / "twice")


def test_a_stage_can_learn_the_rates_of_the_loop_alone(tmp_path):
    warm, through = mtl.fewshot.Stage(0, 2, 2, 1e-2), mtl.fewshot.Stage(2, 2, 2, 1e-2, learn="rates")
    before = mtl.fewshot.train_stages(fresh(), [warm], Blobs(), Blobs(), CONFIG, tmp_path / "warm").generator
    after = mtl.fewshot.train_stages(fresh(), [warm, through], Blobs(), Blobs(), CONFIG, tmp_path / "both").generator
    moved = {name for name, value in after.state_dict().items() if (value != before.state_dict()[name]).any()}
    assert moved == {"step_sizes_of.log_lr"}
    assert all(p.requires_grad for p in after.parameters())
