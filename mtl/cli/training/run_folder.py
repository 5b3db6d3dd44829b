"""The folder of a few-shot recipe: of one run, held while it works, and left untouched once that is finished."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

import mtl
from mtl.cli.training.settings import Settings
from mtl.tools.claim import claim
from mtl.tools.files import remove_drafts, write_whole
from mtl.tools.identity import digest, identity_of

CONFIG, FINISHED = "config.json", "finished.json"
TRAIN, COMPARE = "mtl train", "mtl compare"
# What training depends on, besides data and network: a folder goes on with these only.
TRAINED_WITH = (
    "generator", "ways", "shots", "queries", "head", "inner_steps", "step_size", "gate", "warm_steps", "steps",
    "tasks_per_step", "outer_lr", "validation_tasks", "seed", "estimator",
)  # fmt: skip
# What changes neither tables nor pictures.
FREE = ("out", "data", "cache_dir", "tasks_per_chunk", "checkpoint", "tracker")
WRITTEN = ("*.json", "*.csv", "*.png", "*.md", "*.html")  # tables, pictures and facts


def identity_of_training(
    config: Settings, backbone: mtl.Backbone, train: mtl.TaskSource, val: mtl.TaskSource
) -> dict[str, Any]:
    """What the generators depend on."""
    settings = {name: value for name, value in asdict(config).items() if name in TRAINED_WITH}
    settings |= {} if config.learn == "all" else {"learn": config.learn}  # older folders know no other
    return {
        "settings": settings | {"lite_examples": config.memory.lite_examples},
        "backbone": backbone.identity(),
        "precision": str(backbone.options.precision),
        "train": identity_of(train),
        "validation": identity_of(val),
    }


def identity_of_command(
    config: Settings, training: Mapping[str, Any], by_shots: Mapping[int, tuple[mtl.TaskSource, mtl.TaskSource]]
) -> str:
    """A digest of all that the tables and pictures depend on."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    tasks = {shots: [identity_of(t) for t in both] for shots, both in by_shots.items()}
    return digest(mtl.__version__, settings, training, tasks)


def take(config: Settings, training: Mapping[str, Any]) -> None:
    """Give the folder to this run, and note its settings there. Hold it by a lock.

    Raises:
        ValueError: it belongs to a run with other settings; nothing is written.
    """
    out = Path(config.out)
    claim(out, training, (config.generator, "static"))
    for folder in (
        out,
        out / config.generator,
        out / "static",
        *out.glob("*/*-inner-steps"),
    ):  # what kills left half written
        for name in WRITTEN:
            remove_drafts(folder / name)
    note_settings(out, config)


def note_settings(out: Path, config: Any, command: str = TRAIN) -> None:
    """Write what a run was told, for ``--config``, ``mtl info`` and the report.

    Args:
        config: dataclass of the options of the command.
        command: that takes them back.
    """
    versions = {m.__name__: m.__version__ for m in (mtl, torch, timm, transformers)}
    facts: dict[str, Any] = {"command": command, "config": asdict(config)}
    facts["versions"] = versions | {"python": platform.python_version()}
    facts["defaults"] = defaults_of(type(config))
    write_whole(out / CONFIG, json.dumps(facts, indent=2).encode())


def command_of(facts: Mapping[str, Any]) -> str:
    """The command that takes back the settings in a ``config.json``; older ones do not say it."""
    return str(facts.get("command") or TRAIN)


def defaults_of(config: type) -> dict[str, Any]:
    """Values of a dataclass's options when none is given, as JSON has them."""
    made = {}
    for option in fields(config):
        value = option.default if option.default_factory is MISSING else option.default_factory()
        if value is not MISSING:
            made[option.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(made, default=str))


def finished(config: Settings, command: str) -> list[mtl.Comparison] | None:
    """The tables, if the same command was finished here; None if not, or if one of them is not as it was written."""
    out = Path(config.out)
    try:
        if json.loads((out / FINISHED).read_text())["command"] != command:
            return None
        return [mtl.Comparison.from_json(table_of(config, shots)) for shots in config.shots]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finish(config: Settings, command: str) -> None:
    """Note that the command is finished: the last thing that it writes."""
    write_whole(Path(config.out) / FINISHED, json.dumps({"command": command}).encode())


def table_of(config: Settings, shots: int) -> Path:
    """Where the table of a number of shots is, with every episode's accuracy."""
    return Path(config.out) / f"{shots}-shot.json"
