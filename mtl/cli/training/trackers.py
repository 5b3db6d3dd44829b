"""``--tracker NAME``: the experiment trackers that Accelerate knows, and what a whole run tells them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mtl.cli.training.settings import Settings, TrackerName
from mtl.tools.comparison import Comparison, mean_interval

Plain = bool | int | float | str


def check_tracker(name: TrackerName) -> None:
    """Refuse a tracker whose package is not there, which Accelerate would leave out without a word.

    Raises:
        ImportError: with the command that installs it.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        package = name.replace("_", "-")
        raise ImportError(f"--tracker {name}: {package} is not installed; pip install {package}, or --tracker none")


def begin_tracking(accelerator: Accelerator, config: Settings) -> None:
    """Begin the run's tracker, with all settings as its hyperparameters.

    TensorBoard's files are in ``<out>/tensorboard``; elsewhere the project is ``mtl``, and the run is named after the
    output folder.

    Raises:
        ValueError: the tracker's package says that it cannot begin, such as one that nobody has logged in to.
    """
    run = Path(config.out).name
    named = {"wandb": {"name": run}, "mlflow": {"run_name": run}}
    project = "tensorboard" if config.tracker == "tensorboard" else "mtl"
    try:
        accelerator.init_trackers(project, config=flat(asdict(config)), init_kwargs=named)
    except Exception as error:  # each package has exceptions of its own
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"--tracker {config.tracker} cannot begin: {why.rstrip('.')}; or give --tracker none"
        ) from error


def track_results(accelerator: Accelerator, comparisons: Sequence[Comparison]) -> None:
    """The run's last word: mean accuracy of every method on the test episodes, in ``0 .. 1``, at step 0."""
    accuracies = {
        name_of(found.setting, row.method): mean_interval(row.accuracy)[0]
        for found in comparisons
        for row in found.rows
    }
    for tracker in accelerator.trackers:
        tracker.log(accuracies, **({} if tracker.name == "wandb" else {"step": 0}))


def flat(settings: Mapping[str, Any], front: str = "") -> dict[str, Plain]:
    """Nested settings as trackers take them: ``{"memory": {"shard": False}}`` as ``{"memory.shard": False}``."""
    found: dict[str, Plain] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{front}{name}.")
        else:
            found[f"{front}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def name_of(setting: str, method: str) -> str:
    """``"test/5-way 1-shot/generator 0 steps"``: with the characters alone that all trackers take."""
    return "/".join(["test", *(re.sub(r"[^\w .-]", "", part) for part in (setting, method))])
