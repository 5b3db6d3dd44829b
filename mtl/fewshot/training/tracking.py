"""What a training run tells the experiment trackers of its accelerator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from accelerate import Accelerator


def track(accelerator: Accelerator, metrics: Mapping[str, float], step: int, title: str = "") -> None:
    """Give the metrics of an outer step to every tracker, from the main process.

    Args:
        metrics: as in ``metrics.jsonl``: losses in nats, accuracies in ``0 .. 1``, ``seconds`` per outer step.
        step: outer steps done, of this stage.
        title: goes before the names, such as ``"channelwise/0-inner-steps"``, where several trainings share a tracker.
    """
    front = f"{title}/" if title else ""
    values = {f"{front}{name}": value for name, value in metrics.items() if name != "step"}
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":  # it drops what comes with a step below its last one, as a second training does
            tracker.log(values | {f"{front}step": step})
        else:
            tracker.log(values, step=step)


def warn_of_unused_trackers(accelerator: Accelerator) -> None:
    """Say that an accelerator was given trackers that would see nothing."""
    if accelerator.log_with and not accelerator.trackers and accelerator.is_main_process:
        given = [str(name) for name in accelerator.log_with]
        warnings.warn(
            f"Accelerator(log_with={given}) has no tracker that runs, so nothing is tracked; call "
            "accelerator.init_trackers(project_name) before training",
            stacklevel=3,
        )
