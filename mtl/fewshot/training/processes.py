"""A run on several processes: what they agree on, how they share the episodes, and what they add up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from mtl.episode import Episode, TaskSource, stack_by_shape
from mtl.fewshot.learner import MetaStep
from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.shipping import Episodes
from mtl.metagrad.execution import Execution
from mtl.tools.lock import folder_lock

T = TypeVar("T")


def from_main(value: T) -> T:
    """The main process's value, in every process. All must call this; the values of the others are ignored."""
    [shared] = broadcast_object_list([value])
    return shared


def on_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """What the main process computes, in every process. An error there is raised in all."""
    found: T | None = None
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            found = compute()
        except Exception as raised:
            error = raised
    found, error = from_main((found, error))
    if error is not None:
        raise error
    return cast(T, found)


@contextmanager
def held(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """The main process holds the folder for all.

    Raises:
        mtl.tools.lock.FolderInUse: another run holds it.
    """
    with ExitStack() as stack:
        on_main(accelerator, lambda: stack.enter_context(folder_lock(folder)))
        yield


def requested_precision(accelerator: Accelerator, now: torch.dtype | None) -> torch.dtype | None:
    """Precision of the frozen network as Accelerate is set up; ``now`` where it has no setting.

    Accelerate's own autocast and loss scaler are not used, because they do not handle the gradient of a gradient.

    Raises:
        ValueError: for any precision other than bf16 and fp16.
    """
    known = {"no": now, "bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision not in known:
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r}: expected one of {sorted(known)}; "
            "for weights in fewer bits, load the backbone with quantization='8bit' or '4bit'"
        )
    return known[accelerator.mixed_precision]


def chunk_size(config: TrainingConfig, execution: Execution, accelerator: Accelerator) -> int:
    """Tasks in one forward pass. Processes in lockstep take one task at a time, and equally many each.

    Raises:
        ValueError: when tasks do not divide evenly over processes in lockstep.
    """
    if not execution.lockstep:
        return config.tasks_per_chunk
    for name in ("tasks_per_step", "validation_tasks"):
        count = getattr(config, name)
        if count % accelerator.num_processes:
            raise ValueError(
                f"TrainingConfig({name}={count}) on {accelerator.num_processes} processes that share one sharded "
                f"backbone: expected a multiple of {accelerator.num_processes}, since all pass through it together"
            )
    return 1


def episode_loader(tasks: TaskSource, config: TrainingConfig, step: int, accelerator: Accelerator) -> DataLoader:
    """This process's batches from ``step`` on: task ``i`` of a step belongs to process ``i mod processes``."""
    size = config.tasks_per_step
    mine = range(accelerator.process_index, size, accelerator.num_processes)
    return DataLoader(
        Episodes(tasks),
        batch_sampler=[[s * size + i for i in mine] for s in range(step, config.steps)],
        collate_fn=_collate,
        num_workers=config.workers,
        generator=torch.Generator(),  # the loader draws a seed, which must not come from the global generator
    )


def named_deaths(loader: DataLoader) -> Iterator[list[Episode]]:
    """The loader's batches, and torch's error that names a dead process, whatever was noticed first.

    The connection of a killed process breaks a moment before the system reports its death. Torch raises its own error
    when that report comes, so it is waited for: in its place, people would read of a connection reset by a peer.
    """
    try:
        yield from loader
    except (OSError, EOFError):
        if loader.num_workers:
            time.sleep(1.0)
        raise


def _collate(episodes: list[Episode]) -> list[Episode]:
    return [episode for _, episode in stack_by_shape(episodes)]


class Totals:
    """Sums over episodes, kept on the device until the sums of all processes are added.

    ``max_rho`` is a maximum. Each process writes its own to a place of its own, so that one sum over processes collects
    them all.
    """

    NAMES = ("count", "skipped", "loss", "accuracy", "pulls", "past_cliff")

    def __init__(self, accelerator: Accelerator) -> None:
        self.sums = torch.zeros(len(self.NAMES) + accelerator.num_processes, device=accelerator.device)
        self._worst = self.sums[len(self.NAMES) + accelerator.process_index]

    def skip(self) -> None:
        self.sums[1] += 1

    def add(self, step: MetaStep) -> None:
        n = len(step.losses)
        rho, past = (step.diagnostics.get(k, step.losses.new_zeros(())) for k in ("max_rho", "past_cliff"))
        count, pulls = step.losses.new_tensor(n), step.losses.new_tensor(n * step.pulls)
        added = torch.stack([count, 0 * count, step.losses.sum(), step.accuracy.sum(), pulls, n * past])
        self.sums[: len(added)] += added.to(self.sums)
        self._worst.copy_(torch.maximum(self._worst, rho.to(self._worst)))

    def means(self, values: list[float]) -> dict[str, float]:
        """Means over the counted episodes, from the sums over all processes as Python numbers."""
        count = values[0]
        means = {name: v / count for name, v in zip(self.NAMES[2:], values[2 : len(self.NAMES)], strict=True)}
        return means | {"max_rho": max(values[len(self.NAMES) :])}
