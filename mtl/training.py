"""Meta-training: the outer loop on Accelerate, on any number of processes, resumable, bad episodes left out."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from mtl.checkpoint import CONFIG, from_pretrained, save_pretrained
from mtl.episode import Episode, TaskSource, stacked
from mtl.files import remove_drafts, replacing
from mtl.learner import MetaLearner
from mtl.report import mean_interval
from mtl.tensors import Tensors


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast.

    Args:
        steps: outer steps.
        tasks_per_step: tasks per outer step, over all processes.
        tasks_per_chunk: tasks in one forward pass; lower it when memory is short. The result is the same, except that
            adaptive windows choose their sub-steps for the worst task of a chunk.
        outer_lr: of the generator's weights (AdamW).
        step_size_lr: of the logarithms of the inner step sizes.
        weight_decay: of the generator's matrices.
        warmup: steps of linear warm-up, before a cosine decay to a twentieth.
        clip: largest norm of the meta-gradient.
        validate_every: steps between validations; the best generator by validation accuracy is kept.
        validation_tasks: episodes per validation, the same ones each time.
        save_every: steps between checkpoints; a kill loses at most these.
        patience: consecutive steps without one finite episode before giving up.
        workers: processes that prepare episodes; 0 is in the main process.
    """

    steps: int = 1000
    tasks_per_step: int = 8
    tasks_per_chunk: int = 8
    outer_lr: float = 1e-3
    step_size_lr: float = 1e-2
    weight_decay: float = 1e-2
    warmup: int = 50
    clip: float = 1.0
    validate_every: int = 200
    validation_tasks: int = 80
    save_every: int = 50
    patience: int = 20
    workers: int = 0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "tasks_per_step",
            "tasks_per_chunk",
            "validate_every",
            "validation_tasks",
            "save_every",
            "patience",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainingConfig({name}={getattr(self, name)}): expected at least 1")
        for name in ("outer_lr", "step_size_lr", "weight_decay", "warmup", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainingConfig({name}={getattr(self, name)}): expected 0 or more")
        if not self.clip > 0:
            raise ValueError(f"TrainingConfig(clip={self.clip}): nothing would move; for no clipping use math.inf")


NOTHING_KEPT = {"accuracy": -1.0, "step": 0}


class NonFiniteLosses(RuntimeError):
    """Too many steps in a row had no episode with a finite loss and gradient."""


def train(
    learner: MetaLearner,
    tasks: TaskSource,
    validation: TaskSource,
    config: TrainingConfig,
    folder: str | Path,
    accelerator: Accelerator | None = None,
) -> MetaLearner:
    """Train the learner's generator and return the best one by validation accuracy.

    The run folder gets ``metrics.jsonl``, ``best/`` (see :func:`mtl.save_pretrained`) and ``last.pt``. Called again
    with the same arguments it continues from ``last.pt``; a finished run returns at once.

    Args:
        learner: its generator is trained in place.
        tasks: episodes ``0, 1, 2, ...`` are trained on, each once.
        validation: episodes ``0 .. validation_tasks - 1`` choose the best generator.
        folder: of this run alone.
        accelerator: decides device, precision and processes; a plain one by default.

    Raises:
        ValueError: when the folder holds a run with other settings, or the backbone cannot be saved by name.
        NonFiniteLosses: when nothing finite comes any more.
    """
    accelerator = accelerator or Accelerator()
    learner.backbone.spec()  # a backbone that cannot be saved says so now, not at the first validation
    run = _Run(learner, config, Path(folder), accelerator)
    run.resume()
    loader = _loader(tasks, config, run.step, accelerator)
    hidden = not accelerator.is_main_process
    with tqdm(total=config.steps, initial=run.step, disable=hidden, unit="step", desc=run.folder.name) as progress:
        for batch in loader:
            metrics = run.train_step(batch)
            progress.update()
            progress.set_postfix(
                {k: f"{v:.3f}" for k, v in metrics.items() if k in ("loss", "accuracy")} | run.best_so_far()
            )
            if run.step % config.validate_every == 0 or run.step == config.steps:
                metrics |= run.validate(validation)
            run.log(metrics)
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()
    accelerator.wait_for_everyone()
    return from_pretrained(run.folder / "best", learner.backbone).to(accelerator.device)


class _Run:
    """The state of one training run, and what is done with it in each step."""

    def __init__(self, learner: MetaLearner, config: TrainingConfig, folder: Path, accelerator: Accelerator) -> None:
        self.learner = learner.to(accelerator.device)
        self.config = config
        self.folder = folder
        self.accelerator = accelerator
        self.step = 0
        self.best: dict[str, Any] = dict(NOTHING_KEPT)
        self.barren = 0
        self.parameters = [p for p in learner.generator.parameters() if p.requires_grad]
        for p in self.parameters:
            broadcast(p.data)
        self.optimizer = torch.optim.AdamW(_parameter_groups(learner, config))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: _schedule(s, config))
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)

    # --- one outer step ----------------------------------------------------------------------------------------------

    def train_step(self, batch: Sequence[Episode]) -> dict[str, float]:
        """Sum the meta-gradients of this process's episodes, add those of the others, divide, clip, step."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        totals = _Totals(self.accelerator.device)
        for group in batch:
            for first in range(0, group.tasks, self.config.tasks_per_chunk):
                chunk = group[first : first + self.config.tasks_per_chunk].to(self.accelerator.device)
                self._accumulate(chunk, totals)
        counted, left_out = self._reduce(totals)
        metrics = {"step": self.step + 1, "left_out": left_out}
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        # Finite cotangents can still overflow in the generator; one such step would leave nothing but NaN behind.
        moved = counted > 0 and math.isfinite(norm)
        if moved:
            self.optimizer.step()
            metrics |= totals.means(counted) | {"gradient_norm": norm}
        self.barren = 0 if moved else self.barren + 1
        if self.barren >= self.config.patience:
            raise NonFiniteLosses(self._barren_message())
        self.schedule.step()
        self.step += 1
        return metrics | {"seconds": time.perf_counter() - start}

    def _barren_message(self) -> str:
        saved = self.step // self.config.save_every * self.config.save_every
        return (
            f"no episode of the last {self.barren} steps had a finite loss and gradient; lower outer_lr "
            f"({self.config.outer_lr}) or the inner step size, or look at the inputs. "
            + (f"The last checkpoint is of step {saved}." if saved else "There is no checkpoint yet.")
        )

    def _accumulate(self, chunk: Episode, totals: _Totals) -> None:
        """Add a chunk's gradient to the parameters. A chunk with anything non-finite is taken apart into its tasks."""
        record: dict[str, Tensor] = {}
        with self.accelerator.autocast():
            meta = self.learner.generator(self.learner.view(chunk.support))
            detached = {k: v.detach() for k, v in meta.items()}
            result = self.learner.meta_gradient(chunk, detached, record)
        if _all_finite([result.losses, *result.grads.values()]):
            _backward(meta, result.grads, chunk.tasks)
            totals.add(result.losses, record["accuracy"], result.diagnostics, result.pulls)
        elif chunk.tasks > 1:
            for t in range(chunk.tasks):
                self._accumulate(chunk[t : t + 1], totals)
        else:
            totals.leave_out()
            family = f" of the family {chunk.families[0]!r}" if chunk.families else ""
            warnings.warn(
                f"step {self.step + 1}: an episode{family} has a non-finite loss or gradient and is left out",
                stacklevel=2,
            )

    def _reduce(self, totals: _Totals) -> tuple[float, float]:
        """Sum gradients and totals over processes, divide the gradients by the number of episodes.

        Returns:
            That number, and how many episodes were left out.
        """
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([g.flatten() for g in gradients] + [totals.sums])
        flat = self.accelerator.reduce(flat, "sum")
        assert isinstance(flat, Tensor)
        *sums, totals.sums = flat.split([*(g.numel() for g in gradients), len(totals.sums)])
        counted, left_out = totals.sums[:2].tolist()
        for p, g in zip(self.parameters, sums, strict=True):
            p.grad = (g / max(counted, 1.0)).view_as(p)
        return counted, left_out

    # --- validation, records, checkpoints ----------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, tasks: TaskSource) -> dict[str, float]:
        """Accuracy on the validation episodes; keeps the generator when it is the best so far."""
        n = self.config.validation_tasks
        mine = list(range(self.accelerator.process_index, n, self.accelerator.num_processes))
        correct = torch.zeros(n, device=self.accelerator.device)
        for first in range(0, len(mine), self.config.tasks_per_chunk):
            indices = mine[first : first + self.config.tasks_per_chunk]
            with self.accelerator.autocast():
                for places, episode in stacked([tasks.sample(i) for i in indices]):
                    adapted = self.learner.adapt(episode.support)
                    hits = adapted.predict(episode.query.inputs) == episode.query.labels.to(self.accelerator.device)
                    correct[[indices[p] for p in places]] = hits.float().mean(1)
        total = self.accelerator.reduce(correct, "sum")
        assert isinstance(total, Tensor)
        mean, half = mean_interval(total.cpu().numpy())
        if mean > self.best["accuracy"]:
            self.best = {"accuracy": mean, "step": self.step}
            if self.accelerator.is_main_process:
                save_pretrained(self.learner, self.folder / "best", self.best)
        interval = {} if math.isnan(half) else {"validation_accuracy_half_width": half}  # NaN is not JSON
        return {"validation_accuracy": mean} | interval

    def best_so_far(self) -> dict[str, str]:
        return {"best": f"{self.best['accuracy']:.3f}"} if self.best["step"] else {}

    def log(self, metrics: dict[str, float]) -> None:
        self.accelerator.log({k: v for k, v in metrics.items() if k != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a") as f:
                f.write(json.dumps(metrics) + "\n")

    def save(self) -> None:
        """Write ``last.pt`` as a whole or not at all."""
        if self.accelerator.is_main_process:
            state = {
                "settings": self._settings(),
                "step": self.step,
                "generator": self.learner.generator.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            with replacing(self.folder / "last.pt") as draft:
                torch.save(state, draft)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Continue from ``last.pt`` when there is one."""
        path = self.folder / "last.pt"
        if path.is_file():
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self._check_settings(state["settings"])
            self.step, self.best = state["step"], self._kept()
            self.learner.generator.load_state_dict(state["generator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.is_main_process:
            for name in ("last.pt", "best", "metrics.jsonl"):
                remove_drafts(self.folder / name)
            _forget_after(self.folder / "metrics.jsonl", self.step)
        self.accelerator.wait_for_everyone()

    def _kept(self) -> dict[str, Any]:
        """Accuracy and step of ``best/``. The folder itself is asked: a kill may have come between its writing and
        that of ``last.pt``, or in the middle of its replacement."""
        config = self.folder / "best" / CONFIG
        return json.loads(config.read_text())["extra"] if config.is_file() else dict(NOTHING_KEPT)

    def _settings(self) -> dict[str, Any]:
        """What must not change within a run. How it is cut into chunks, processes and checkpoints may."""
        free = {"tasks_per_chunk", "save_every", "workers", "patience"}
        settings = {k: v for k, v in asdict(self.config).items() if k not in free}
        learner = self.learner
        return settings | {
            "backbone": learner.backbone.fingerprint(),
            "generator": type(learner.generator).__name__,
            "generator_options": learner.generator.options,
            "head": repr(learner.head),
            "inner_steps": learner.inner_steps,
            "momentum": learner.optimizer.momentum,
            "inner_weight_decay": learner.optimizer.weight_decay,
            "estimator": repr(learner.estimator),
        }

    def _check_settings(self, saved: dict[str, Any]) -> None:
        now = self._settings()
        changed = [f"{k}: {saved.get(k)!r} there, {now.get(k)!r} now" for k in now if saved.get(k) != now.get(k)]
        if changed:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({'; '.join(changed)}); "
                "give this run another folder, or remove that one"
            )


class _Totals:
    """Sums over episodes, kept on the device until all processes have added theirs."""

    NAMES = ("count", "left_out", "loss", "accuracy", "pulls", "max_rho")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), device=device)

    def leave_out(self) -> None:
        self.sums[1] += 1

    def add(self, losses: Tensor, accuracy: Tensor, diagnostics: dict[str, Tensor], pulls: int) -> None:
        n = len(losses)
        rho = diagnostics.get("max_rho", losses.new_zeros(()))
        count, pulled = losses.new_tensor(n), losses.new_tensor(n * pulls)
        self.sums += torch.stack([count, 0 * count, losses.sum(), accuracy.sum(), pulled, n * rho]).to(self.sums)

    def means(self, count: float) -> dict[str, float]:
        return {name: value / count for name, value in zip(self.NAMES[2:], self.sums.tolist()[2:], strict=True)}


def _backward(meta: Tensors, cotangents: Tensors, tasks: int) -> None:
    """One pass back through the generator, with the sum over tasks, not their mean: chunks of any size add up."""
    pairs = [(v, cotangents[k] * tasks) for k, v in meta.items() if v.requires_grad]
    torch.autograd.backward([v for v, _ in pairs], [c.to(v.dtype) for v, c in pairs])


def _all_finite(values: Iterable[Tensor]) -> bool:
    return bool(torch.stack([torch.isfinite(v).all() for v in values]).all())


def _parameter_groups(learner: MetaLearner, config: TrainingConfig) -> list[dict[str, Any]]:
    """Step sizes have a rate of their own; vectors (gates, offsets, norms) are not decayed."""
    rates = [learner.generator.step_sizes_of.log_lr]
    others = [p for p in learner.generator.parameters() if p is not rates[0]]
    return [
        {"params": [p for p in others if p.dim() > 1], "lr": config.outer_lr, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "lr": config.outer_lr, "weight_decay": 0.0},
        {"params": rates, "lr": config.step_size_lr, "weight_decay": 0.0},
    ]


def _schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class _Episodes(Dataset):
    def __init__(self, tasks: TaskSource) -> None:
        self.tasks = tasks

    def __getitem__(self, index: int) -> Episode:
        return self.tasks.sample(index)


def _loader(tasks: TaskSource, config: TrainingConfig, step: int, accelerator: Accelerator) -> DataLoader:
    """Batches of this process from ``step`` on: task ``i`` of a step belongs to process ``i mod processes``."""

    def batches() -> Iterator[list[int]]:
        for s in range(step, config.steps):
            first = s * config.tasks_per_step
            yield list(
                range(first + accelerator.process_index, first + config.tasks_per_step, accelerator.num_processes)
            )

    return DataLoader(
        _Episodes(tasks),
        batch_sampler=list(batches()),
        collate_fn=_collate,
        num_workers=config.workers,
        generator=torch.Generator(),  # the loader draws a seed from it, not from the global one
    )


def _collate(episodes: list[Episode]) -> list[Episode]:
    return [episode for _, episode in stacked(episodes)]


def _forget_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that will be taken again, and a line that a kill cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] > step:
            break
        kept.append(line + "\n")
    with replacing(path) as draft:
        draft.write_text("".join(kept))
