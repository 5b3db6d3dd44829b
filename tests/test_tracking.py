"""Experiment trackers see what a run writes down, by their names or as an object of one's own."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import few_shot_vision
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from runs import records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import CONFIG, fresh
from tiny import Blobs

import mtl
from mtl.cli.training import few_shot, trackers
from mtl.cli.training.run_folder import identity_of_command
from mtl.fewshot.training.tracking import track

TINY: dict[str, Any] = {
    "shots": (1,), "queries": 2, "warm_steps": 2, "steps": 1, "inner_steps": 1, "tasks_per_step": 4,
    "validation_tasks": 2, "tuning_episodes": 1, "test_episodes": 4, "kept_episodes": 4, "cross_validate": False,
    "baselines": ("ridge",),
}  # fmt: skip


class Notebook(GeneralTracker):
    """A tracker of one's own."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> list[Any]:
        return self.lines

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings |= values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.lines.append((step, values))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of all event files of TensorBoard directly in a folder: steps and values by name."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_whole_run(tmp_path: Path):
    config = few_shot_vision.Config(out=str(tmp_path / "run"), **TINY)
    [found] = few_shot_vision.main(config)
    told = scalars(tmp_path / "run" / "tensorboard")
    for kind in ("channelwise", "static"):
        for stage, steps in (("0-inner-steps", 2), ("1-inner-steps", 1)):
            written = records(tmp_path / "run" / kind / stage)
            for name in ("loss", "accuracy", "gradient_norm"):
                expected = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in written]
                assert told[f"{kind}/{stage}/{name}"] == expected
            assert [step for step, _ in told[f"{kind}/{stage}/validation_accuracy"]] == [steps]
    reference = found.row(found.reference)
    [(_, accuracy)] = told[trackers.name_of(found.setting, reference.method)]
    assert accuracy == pytest.approx(reference.accuracy.mean(), rel=1e-6)
    [settings] = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert "memory.shard: false" in settings.read_text()
    assert "seed: 0" in settings.read_text()


def test_a_run_is_the_same_with_another_tracker(tmp_path: Path):
    config = few_shot_vision.Config(out=str(tmp_path), **TINY)
    commands = {identity_of_command(replace(config, tracker=name), {}, {}) for name in ("none", "tensorboard", "wandb")}
    assert len(commands) == 1
    assert identity_of_command(replace(config, seed=1), {}, {}) not in commands


def test_none_tracks_nothing(tmp_path: Path):
    config = few_shot_vision.Config(out=str(tmp_path), tracker="none", **TINY)
    accelerator = few_shot.accelerator_of(config)
    trackers.begin_tracking(accelerator, config)
    assert accelerator.trackers == []
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = few_shot_vision.Config(out=str(tmp_path / "run"), tracker="comet_ml", **TINY)
    with pytest.raises(ImportError, match=r"^--tracker comet_ml: comet-ml is not installed; pip install comet-ml, or"):
        few_shot_vision.main(config)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class UsageError(Exception):
        """As wandb has it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    config = few_shot_vision.Config(out=str(tmp_path), **TINY)
    said = r"^--tracker tensorboard cannot begin: No API key configured. Use `wandb login` to log in; or give --tracker"
    with pytest.raises(ValueError, match=said):
        trackers.begin_tracking(few_shot.accelerator_of(config), config)


def test_a_tracker_of_ones_own(tmp_path: Path):
    notebook = Notebook()
    accelerator = Accelerator(log_with=notebook)
    accelerator.init_trackers("blobs", config={"ways": 3})
    mtl.train(fresh(), Blobs(), Blobs(), replace(CONFIG, steps=3), tmp_path / "run", accelerator)
    assert notebook.settings == {"ways": 3}
    written = [(line.pop("step"), line) for line in records(tmp_path / "run")]
    assert notebook.lines == written


def test_trackers_that_were_not_begun_are_told_of(tmp_path: Path):
    config = replace(CONFIG, steps=1, self_check=False)
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(tmp_path / "logs"))
    with pytest.warns(UserWarning, match=r"\['tensorboard'\]\) has no tracker that runs.*init_trackers"):
        mtl.train(fresh(), Blobs(), Blobs(), config, tmp_path / "run", accelerator)


def test_wandb_gets_no_step_that_goes_back():
    """It drops what comes with a lower step than its last, such as the second training of a run."""

    class Wandb(Notebook):
        name = "wandb"

    wandb = Wandb()
    accelerator = Accelerator(log_with=wandb)
    accelerator.init_trackers("blobs")
    for title in ("first", "second"):
        track(accelerator, {"step": 1, "loss": 0.5}, 1, title)
    assert wandb.lines == [(None, {"first/loss": 0.5, "first/step": 1}), (None, {"second/loss": 0.5, "second/step": 1})]
