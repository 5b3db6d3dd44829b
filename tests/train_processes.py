"""Several short runs in one process of several; what each process saw goes to ``FOLDER/rank-<n>.pt``.

Launched by test_processes.py as ``train_processes.py FOLDER PROCESSES NAME...``, and called by it for one process.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tiny import Blobs, backbone
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mtl
from mtl.fewshot.training import check

# Weights that do not move: the gradients of all steps can be compared, unmixed with what Adam makes of rounding.
STILL = mtl.TrainingConfig(
    steps=4, tasks_per_step=4, outer_lr=0, step_size_lr=0, weight_decay=0, clip=1e9, validate_every=4,
    validation_tasks=5, self_check=False,
)  # fmt: skip
MOVING = mtl.TrainingConfig(
    steps=6, tasks_per_step=4, warmup=2, validate_every=2, validation_tasks=5, save_every=2, self_check=False
)


@dataclass(frozen=True)
class Scenario:
    config: mtl.TrainingConfig
    poisoned: tuple[int, ...] = ()
    until: int | None = None  # the machine goes away before this step
    estimator: mtl.metagrad.AbstractEstimator = field(default_factory=mtl.Windowed)


SCENARIOS = {
    "four": Scenario(STILL),
    "three": Scenario(replace(STILL, tasks_per_step=3)),
    "one": Scenario(replace(STILL, tasks_per_step=1)),
    "workers": Scenario(replace(STILL, tasks_per_step=3, workers=1)),
    # of step 1 one episode; of step 2 all of the second process; of step 3 all
    "poisoned": Scenario(replace(STILL, patience=2), poisoned=(1, 5, 7, 8, 9, 10, 11)),
    "moving": Scenario(MOVING),
    "moving, poisoned": Scenario(MOVING, poisoned=(1, 5, 7)),
    "checked": Scenario(
        replace(MOVING, steps=2, self_check=True), estimator=mtl.Windowed(mode="lazy", pull="finite-difference")
    ),
    "first half": Scenario(MOVING, until=3),
    "second half": Scenario(MOVING),
    "dying": Scenario(MOVING, until=3),
}


class Watched(Blobs):
    """Blobs that note who asked for them."""

    def __init__(self, scenario: Scenario, on_end) -> None:
        super().__init__(poisoned=scenario.poisoned)
        self.end = sys.maxsize if scenario.until is None else scenario.until * scenario.config.tasks_per_step
        self.on_end = on_end
        self.asked: list[int] = []

    def sample(self, index: int) -> mtl.Episode:
        if index >= self.end:
            self.on_end()
        self.asked.append(index)
        return super().sample(index)


class MachineGone(Exception):
    """The end of a run that is to be continued."""


def go() -> None:
    raise MachineGone


def learner(estimator: mtl.metagrad.AbstractEstimator, rank: int) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    torch.manual_seed(rank)  # every process starts elsewhere: training has to see to it that they agree
    return mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2, estimator=estimator)


@contextmanager
def gradients() -> Iterator[list[torch.Tensor]]:
    """What reaches the optimiser, step by step."""
    seen: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def run(name: str, folder: Path, accelerator: Accelerator, on_end=go) -> dict[str, Any]:
    """One scenario, and what this process saw of it."""
    scenario, rank = SCENARIOS[name], accelerator.process_index
    made, tasks, validation = learner(scenario.estimator, rank), Watched(scenario, on_end), Watched(Scenario(STILL), go)
    with gradients() as seen, suppress(MachineGone), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mtl.train(made, tasks, validation, scenario.config, folder, accelerator)
    return {
        "gradients": seen,
        "asked": tasks.asked,
        "validated": validation.asked,
        "generator": made.generator.state_dict(),
        "radius": getattr(getattr(made.estimator, "pull", None), "radius", None),
    }


def note_writes(folder: Path) -> list[str]:
    """A list that fills with what this process changes in a folder."""
    written: list[str] = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def audit(event: str, args: tuple) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        if (changes or (event == "open" and (args[2] or 0) & writing)) and str(args[0]).startswith(str(folder)):
            written.append(f"{event} {args[0]}")

    sys.addaudithook(audit)
    return written


def main(folder: Path, processes: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == processes, f"{accelerator.num_processes} processes, expected {processes}"
    rank = accelerator.process_index
    written = note_writes(folder)
    if rank == 1:
        check.calibrate_radius = lambda *_, **__: mtl.metagrad.FiniteDifference(123.0)
    die = lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None  # noqa: E731
    found = {n: run(n, folder / n, accelerator, die if n == "dying" else go) for n in names}
    torch.save(found | {"written": list(written)}, folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
