"""One training run: its state, its outer step, validation, records and checkpoints."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from mtl.episode import Episode, TaskSource, stack_by_shape
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.model import most_likely
from mtl.fewshot.saved_files import is_complete, read_config
from mtl.fewshot.saving import save_pretrained
from mtl.fewshot.training.check import FILE, check_estimator, keep_radius, radius_of, read_check
from mtl.fewshot.training.checkpoints import METRICS, Checkpoints, append, forget_after
from mtl.fewshot.training.config import TrainingConfig, parameter_groups, schedule
from mtl.fewshot.training.processes import Totals, chunk_size, from_main, on_main, requested_precision
from mtl.fewshot.training.tracking import track
from mtl.tools.claim import RUN, check_same, claim, is_claimed
from mtl.tools.comparison import mean_interval
from mtl.tools.files import PROBE, check_writable, remove_drafts

NO_BEST = {"accuracy": -1.0, "step": 0}
LEFTOVERS = (METRICS, FILE, "best")  # of a run, beside its checkpoints


class NonFiniteLosses(RuntimeError):
    """Too many steps in a row had no episode with a finite loss and gradient."""


class Run:
    """The state of one training run, and its operations. Making one writes nothing.

    Attributes:
        title: tells this training from others in trackers.
        settings: its :func:`~mtl.fewshot.training.fingerprint.fingerprint`; made once the precision is set.
    """

    def __init__(
        self, learner: MetaLearner, config: TrainingConfig, folder: Path, accelerator: Accelerator, title: str = ""
    ) -> None:
        self.learner = learner.to(accelerator.device)
        self.config, self.folder, self.accelerator, self.title = config, folder, accelerator, title
        learner.backbone.configure(precision=requested_precision(accelerator, learner.backbone.options.precision))
        self.tasks_per_chunk = chunk_size(config, learner.backbone.execution, accelerator)
        self.checkpoints = Checkpoints(folder)
        self.step = self.saved = self.failed_steps = 0
        self.best: dict[str, Any] = dict(NO_BEST)
        self.warned_cliff = False
        self.settings: dict[str, Any] = {}
        self.parameters = [p for p in learner.generator.parameters() if p.requires_grad]
        for p in self.parameters:
            broadcast(p.data)
        self.optimizer = torch.optim.AdamW(parameter_groups(learner.generator, config))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: schedule(s, config))
        self.parts = {"generator": learner.generator, "optimizer": self.optimizer, "schedule": self.schedule}

    # --- one outer step ----------------------------------------------------------------------------------------------

    def train_step(self, batch: Sequence[Episode]) -> dict[str, float]:
        """Sum the meta-gradients of all episodes over all processes, divide, clip, and step."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        totals = Totals(self.accelerator)
        for group in batch:
            for first in range(0, group.tasks, self.tasks_per_chunk):
                self._accumulate(group[first : first + self.tasks_per_chunk], totals)
        self._reduce(totals)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        # All numbers in one transfer: this waits for the device, as meta_step does once per chunk.
        *sums, gradient_norm = torch.cat([totals.sums, norm.reshape(1).to(totals.sums)]).tolist()
        metrics = {"step": self.step + 1, "skipped": sums[1]}
        # Finite meta-gradients can still overflow in the generator, and one such step would turn all weights into NaN.
        moved = sums[0] > 0 and math.isfinite(gradient_norm)
        if moved:
            self.optimizer.step()
            metrics |= totals.means(sums) | {"gradient_norm": gradient_norm}
            self._warn_of_cliff(metrics)
        self.failed_steps = 0 if moved else self.failed_steps + 1
        if self.failed_steps >= self.config.patience:
            raise NonFiniteLosses(
                f"no episode of the last {self.failed_steps} steps had a finite loss and gradient; lower outer_lr "
                f"({self.config.outer_lr}) or the inner step size, or check the inputs for NaN"
            )
        self.schedule.step()
        self.step += 1
        return metrics | {"seconds": time.perf_counter() - start}

    def check(self, tasks: TaskSource) -> str:
        """See :func:`mtl.fewshot.training.check.check_estimator`."""
        if not self.config.self_check:
            return ""
        first = lambda: tasks.sample(0).to(self.accelerator.device)  # noqa: E731
        return check_estimator(self.learner, first, self.folder, self.accelerator.is_main_process)

    def _warn_of_cliff(self, metrics: dict[str, float]) -> None:
        if metrics["past_cliff"] > 0.5 and not self.warned_cliff and self.accelerator.is_main_process:
            self.warned_cliff = True
            warnings.warn(
                f"step {self.step + 1}: {metrics['past_cliff']:.0%} of the windows are past the cliff (max_rho "
                f"{metrics['max_rho']:.2f}): adaptive windows cost as much as Rematerialised there, fixed ones are "
                "coarse, and those without rank_one point elsewhere; a lower inner step size or a shorter window helps",
                stacklevel=3,
            )

    def _accumulate(self, chunk: Episode, totals: Totals) -> None:
        """Add a chunk's gradient to the parameters. A chunk with anything non-finite is repeated task by task."""
        step = self.learner.meta_step(chunk, weight=chunk.tasks)  # a sum over tasks, so that chunks of any size add up
        if step.finite:
            totals.add(step)
        elif chunk.tasks > 1:
            for t in range(chunk.tasks):
                self._accumulate(chunk[t : t + 1], totals)
        else:
            totals.skip()
            family = f" of the family {chunk.families[0]!r}" if chunk.families else ""
            why = "has a non-finite loss or gradient and is left out"
            warnings.warn(f"step {self.step + 1}: an episode{family} {why}", stacklevel=2)

    def _reduce(self, totals: Totals) -> None:
        """Sum gradients and totals over processes, and divide the gradients by the number of episodes."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = self._sum(torch.cat([*(g.flatten() for g in gradients), totals.sums]))
        *sums, totals.sums = flat.split([*(g.numel() for g in gradients), len(totals.sums)])
        count = totals.sums[0].clamp_min(1)
        for p, g in zip(self.parameters, sums, strict=True):
            p.grad = (g / count).view_as(p)

    def _sum(self, values: Tensor) -> Tensor:
        """Over processes."""
        total = self.accelerator.reduce(values, "sum")
        assert isinstance(total, Tensor)
        return total

    # --- validation, records, checkpoints ----------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, tasks: TaskSource) -> dict[str, float]:
        """Accuracy on the validation episodes; keeps the generator when it is the best so far."""
        n = self.config.validation_tasks
        mine = list(range(self.accelerator.process_index, n, self.accelerator.num_processes))
        correct = torch.zeros(n, device=self.accelerator.device)
        for first in range(0, len(mine), self.tasks_per_chunk):
            indices = mine[first : first + self.tasks_per_chunk]
            for places, episode in stack_by_shape([tasks.sample(i) for i in indices]):
                adapted = self.learner.adapt(episode.support)
                hits = most_likely(adapted.logits(episode.query.inputs)) == episode.query.labels.to(
                    self.accelerator.device
                )
                correct[[indices[p] for p in places]] = hits.float().mean(1)
        mean, half = mean_interval(self._sum(correct).cpu().numpy())
        if mean > self.best["accuracy"]:
            self.best = {"accuracy": mean, "step": self.step}
            if self.accelerator.is_main_process:
                save_pretrained(self.learner, self.folder / "best", self.best)
        interval = {} if math.isnan(half) else {"validation_accuracy_half_width": half}  # NaN is not JSON
        return {"validation_accuracy": mean} | interval

    def log(self, metrics: dict[str, float]) -> None:
        track(self.accelerator, metrics, self.step, self.title)
        if self.accelerator.is_main_process:
            append(self.folder / METRICS, metrics)

    def save(self) -> None:
        """Write a checkpoint as a whole or not at all."""
        if self.accelerator.is_main_process:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            state = {"settings": self.settings, "step": self.step, "radius": radius_of(self.learner)}
            self.checkpoints.save(state | states)
        self.accelerator.wait_for_everyone()
        self.saved = self.step

    def compare(self) -> None:
        """Compare the folder's run with this one; see :meth:`look`. Nothing is changed, here or there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            on_main(self.accelerator, lambda: self._saved_state() and None)

    def look(self) -> None:
        """Compare the folder's run with this one, and take its state if it is the same. Nothing is written.

        Raises:
            ValueError: the folder holds a run with other settings, or no checkpoint that can be read.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged checkpoints; resume says it
            self._restore(on_main(self.accelerator, self._saved_state))

    def resume(self) -> None:
        """Take the folder for this run and continue from the newest intact checkpoint when there is one.

        The main process reads it for all, so that all continue from the same one even if they see different files.

        Raises:
            ValueError: see :meth:`look`; another process may have begun a run since.
            OSError: the folder cannot be written to.
        """
        self._restore(on_main(self.accelerator, self._taken_state))

    def _saved_state(self) -> dict[str, Any] | None:
        """The newest checkpoint, None without one."""
        state = self.checkpoints.newest()
        if state is not None:
            check_saved(self.folder, state["settings"], self.settings)
            state["radius"] = (read_check(self.folder) or state)["radius"]
        is_claimed(self.folder, self.settings, () if state else LEFTOVERS)
        return state

    def _taken_state(self) -> dict[str, Any] | None:
        state = self._saved_state()
        claim(self.folder, self.settings, () if state else LEFTOVERS)
        self._tidy(state["step"] if state else 0)
        return state

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.step = self.saved = state["step"]
            given = self.learner.generator.given  # what a checkpoint holds is not what the run began with
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.learner.generator.given = given
            keep_radius(self.learner, state["radius"])
        self.best = from_main(self._saved_best() if self._main and self.step else dict(NO_BEST))

    @property
    def _main(self) -> bool:
        return self.accelerator.is_main_process

    def last_good_state(self) -> str:
        """Note attached to the final exception."""
        if not self.saved:
            every = self.config.save_every
            return f"{self.folder} has no checkpoint yet (save_every={every}): the same command starts anew"
        path = self.checkpoints.path(self.saved)
        return f"{path} is intact (step {self.saved} of {self.config.steps}): the same command continues from there"

    def check_folder(self) -> None:
        """Refuse a folder that cannot be written to: now, not after the first ``save_every`` steps."""
        on_main(self.accelerator, lambda: check_writable(self.checkpoints.folder))

    def _tidy(self, step: int) -> None:
        """Remove what a kill left, and the metrics of steps that will be repeated."""
        for path in (self.folder / METRICS, self.folder / FILE, self.folder / RUN):
            remove_drafts(path)
        for path in (self.checkpoints.folder / "step-*.pt", self.checkpoints.folder / PROBE):
            remove_drafts(path)
        forget_after(self.folder / METRICS, step)

    def _saved_best(self) -> dict[str, Any]:
        """Accuracy and step of ``best/``, read from the folder: a kill may have come between writing it and writing the
        checkpoint."""
        best = self.folder / "best"
        return read_config(best)["extra"] if is_complete(best) else dict(NO_BEST)


def check_saved(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse the checkpoint of a run with other settings.

    Raises:
        ValueError: naming them; or that the checkpoint does not say all that it would have to.
    """
    if "tasks" not in saved:
        raise ValueError(
            f"{folder} holds a run of mtl 0.1.0, which did not note its data: nobody can tell whether it would go on "
            "with the same; finish it with that version, or give this run another folder (another --out)"
        )
    check_same(folder, saved, now)
