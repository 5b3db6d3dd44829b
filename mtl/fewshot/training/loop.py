"""The outer loop."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mtl.episode import TaskSource
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saving import check_saving, from_pretrained
from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loader import episode_loader
from mtl.fewshot.training.run import Run


def train(
    learner: MetaLearner,
    tasks: TaskSource,
    validation: TaskSource,
    config: TrainingConfig,
    folder: str | Path,
    accelerator: Accelerator | None = None,
) -> MetaLearner:
    """Train the learner's generator and return the best one by validation accuracy.

    The run folder gets ``metrics.jsonl``, ``estimator.json`` (how the estimator compares with the exact gradient),
    ``best/`` (see :func:`mtl.save_pretrained`) and the last two of its ``checkpoints/``. Called again with the same
    arguments, on any number of processes, it continues from the newest intact one; a finished run returns at once. An
    exception that ends a run carries a note that says where its last good state is.

    Args:
        learner: its generator is trained in place.
        tasks: episodes ``0, 1, 2, ...`` are trained on, each once.
        validation: episodes ``0 .. validation_tasks - 1`` choose the best generator.
        folder: for this run alone.
        accelerator: decides device, precision and processes; ``Accelerator()`` by default.

    Raises:
        ValueError: when the folder holds a run with other settings, or checkpoints of something else, or only damaged
            ones; before the first step, when a part of the learner could not be saved.
        OSError: when the folder cannot be written to (before the first step), or its disk is full.
        NonFiniteLosses: after ``patience`` steps in a row without a finite loss and gradient.
    """
    accelerator = accelerator or Accelerator()
    check_saving(learner)  # now, not at the first validation
    run = Run(learner, config, Path(folder), accelerator)
    run.resume()
    if (agreement := run.check(tasks)) and accelerator.is_main_process:
        tqdm.write(f"{agreement}\nwords: docs/glossary.md")
    try:
        _take_steps(run, episode_loader(tasks, config, run.step, accelerator), validation)
    except BaseException as error:  # Ctrl-C too
        if "DataLoader worker (pid" in str(error):  # torch names the signal, but no remedy
            error.add_note(
                f"a process that prepares episodes died; if memory was short, use fewer than {config.workers}"
            )
        error.add_note(run.last_good_state())
        raise
    accelerator.wait_for_everyone()
    return from_pretrained(run.folder / "best", learner.backbone).to(accelerator.device)


def _take_steps(run: Run, batches: DataLoader, validation: TaskSource) -> None:
    config, hidden = run.config, not run.accelerator.is_main_process
    with tqdm(total=config.steps, initial=run.step, disable=hidden, unit="step", desc=run.folder.name) as progress:
        for batch in batches:
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
