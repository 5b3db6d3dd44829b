"""The outer loop, in one stage or several, such as many cheap steps without the inner loop before fewer through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from mtl.episode import TaskSource
from mtl.fewshot.generators import AbstractGenerator, Learn
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saved_files import is_complete
from mtl.fewshot.saving import check_saving, from_pretrained, save_pretrained
from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.fingerprint import fingerprint
from mtl.fewshot.training.processes import episode_loader, held, named_deaths, on_main
from mtl.fewshot.training.run import Run
from mtl.fewshot.training.shipping import check_shipping
from mtl.fewshot.training.tracking import warn_of_unused_trackers
from mtl.tools.claim import claim, is_claimed
from mtl.tools.identity import as_json, identity_of
from mtl.tools.progress import ProgressBar

FINAL = "final"  # the result of all stages


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
    ``best/`` (see :func:`mtl.save_pretrained`), the last two of its ``checkpoints/``, and ``run.json``: all that its
    result depends on. Called again with the same arguments, on any number of processes, it continues from the newest
    intact checkpoint; a finished run returns at once. With other arguments or other data it is refused before anything
    is written; docs/running-long.md lists what may change. An exception that ends a run carries a note that says where
    its last good state is.

    Args:
        learner: its generator is trained in place.
        tasks: episodes ``0, 1, 2, ...`` are trained on, each once.
        validation: episodes ``0 .. validation_tasks - 1`` choose the best generator.
        folder: for this run alone.
        accelerator: decides device, precision and processes; ``Accelerator()`` by default. Its trackers, once they
            run, see what ``metrics.jsonl`` gets.

    Raises:
        ValueError: when the folder holds a run with other settings, or checkpoints of something else, or only damaged
            ones; before the first step, when a part of the learner could not be saved, or the tasks cannot go to the
            processes that ``config.workers`` asks for.
        FolderInUse: when another process trains in the folder (:mod:`mtl.tools.lock`).
        OSError: when the folder cannot be written to (before the first step), or its disk is full.
        NonFiniteLosses: after ``patience`` steps in a row without a finite loss and gradient.
    """
    check_saving(learner)  # now, not at the first validation
    check_shipping(tasks, config.workers)
    run = Run(learner, config, Path(folder), accelerator or Accelerator())
    run.settings = fingerprint(learner, config)
    run.settings |= _identities(run, tasks, validation)
    return _train(run, tasks, validation)


def _identities(run: Run, tasks: TaskSource, validation: TaskSource) -> dict[str, Any]:
    compute = lambda: {"tasks": identity_of(tasks), "validation": identity_of(validation)}  # noqa: E731
    # Processes that share a network pass through it together, should tasks need that.
    return as_json(compute() if run.learner.backbone.execution.lockstep else on_main(run.accelerator, compute))


def _train(run: Run, tasks: TaskSource, validation: TaskSource) -> MetaLearner:
    """Go on with a run to its end; the best learner."""
    run.look()
    if run.step < run.config.steps:
        run.check_folder()
        warn_of_unused_trackers(run.accelerator)
        with held(run.accelerator, run.folder):
            run.resume()
            _go_on(run, tasks, validation)
            run.accelerator.wait_for_everyone()
    return from_pretrained(run.folder / "best", run.learner.backbone).to(run.accelerator.device)


def _go_on(run: Run, tasks: TaskSource, validation: TaskSource) -> None:
    """Take the steps that are left."""
    config, accelerator = run.config, run.accelerator
    if (agreement := run.check(tasks)) and accelerator.is_main_process:
        ProgressBar.write(f"{agreement}\nwords: docs/glossary.md")
    try:
        _take_steps(run, episode_loader(tasks, config, run.step, accelerator), validation)
    except BaseException as error:  # Ctrl-C too
        _add_remedy(error, config)
        error.add_note(run.last_good_state())
        raise


def _add_remedy(error: BaseException, config: TrainingConfig) -> None:
    """Torch names what a process that prepares episodes died of, but no remedy."""
    if "DataLoader worker (pid" in str(error):
        error.add_note(f"a process that prepares episodes died; if memory was short, use fewer than {config.workers}")
    if "re-initialize CUDA in forked" in str(error):
        error.add_note(
            "a process that prepares episodes called the network, which is on a GPU: fill the InputCache before "
            "training, cache.fill(collection), or use workers=0"
        )


def _take_steps(run: Run, batches: DataLoader, validation: TaskSource) -> None:
    config, show = run.config, run.accelerator.is_main_process
    with ProgressBar(total=config.steps, initial=run.step, show=show, unit="step", desc=run.folder.name) as progress:
        for batch in named_deaths(batches):
            metrics = run.train_step(batch)
            progress.update()
            best = {"best": run.best["accuracy"]} if run.best["step"] else {}
            shown = {k: v for k, v in metrics.items() if k in ("loss", "accuracy")} | best
            progress.set_postfix({k: f"{v:.3f}" for k, v in shown.items()})
            if run.step % config.validate_every == 0 or run.step == config.steps:
                metrics |= run.validate(validation)
            run.log(metrics)
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()


@dataclass(frozen=True)
class Stage:
    """What differs from one stage to the next; the names are those of :class:`TrainingConfig`.

    Args:
        inner_steps: gradient steps per task, >= 0; without any (0), an outer step costs one pass through the network.
        steps: outer steps; a stage of 0 is skipped.
        tasks_per_step: tasks per outer step.
        outer_lr: of the generator's weights.
        validate_every: outer steps between validations.
        learn: what is trained, see :meth:`mtl.fewshot.AbstractGenerator.learn`.
    """

    inner_steps: int
    steps: int
    tasks_per_step: int
    outer_lr: float
    validate_every: int = 200
    learn: Learn = "all"

    @property
    def folder(self) -> str:
        """Name of the stage's run folder."""
        return f"{self.inner_steps}-inner-steps"


def train_stages(
    learner: MetaLearner,
    stages: Sequence[Stage],
    tasks: TaskSource,
    validation: TaskSource,
    config: TrainingConfig,
    folder: str | Path,
    accelerator: Accelerator | None = None,
) -> MetaLearner:
    """Train one generator stage by stage; each stage starts from the best generator of the one before.

    Called again with the same arguments, it continues where it stopped, see :func:`mtl.train`. All stages are compared
    with what the folder holds before the first of them writes anything.

    Args:
        learner: its generator is trained in place in the first stage, if all of it is.
        stages: in order.
        tasks: every stage begins at episode 0.
        validation: see :func:`mtl.train`.
        config: the settings that all stages share.
        folder: gets one run folder per stage, ``<inner steps>-inner-steps``, and the result as ``final/``.

    Returns:
        The given learner with the best generator of the last stage, and its own number of inner steps.

    Raises:
        ValueError: when two stages have the same number of inner steps, and would share a folder; and what
            :func:`mtl.train` raises.
    """
    stages = [stage for stage in stages if stage.steps]
    if len({stage.folder for stage in stages}) < len(stages):
        raise ValueError(f"two stages share a folder ({[s.folder for s in stages]}); give each its own inner_steps")
    shared = {field.name for field in fields(config)}
    accelerator, folder, generator = accelerator or Accelerator(), Path(folder), learner.generator
    parts = [replace(config, **{k: v for k, v in asdict(s).items() if k in shared}) for s in stages]
    made = [_with(learner, learning(generator, s.learn), s.inner_steps) for s in stages]
    runs = {s.folder: pair for s, pair in zip(stages, zip(made, parts, strict=True), strict=True)}
    settings = _compare(runs, tasks, validation, folder, accelerator)
    whole = {"stages": settings, "inner_steps": learner.inner_steps}
    finished = on_main(accelerator, lambda: is_claimed(folder, whole, [FINAL]) and is_complete(folder / FINAL))
    if not finished:
        with held(accelerator, folder):
            on_main(accelerator, lambda: claim(folder, whole, [FINAL]))
            for stage, part in zip(stages, parts, strict=True):
                name, trained = stage.folder, _with(learner, learning(generator, stage.learn), stage.inner_steps)
                run = Run(trained, part, folder / name, accelerator, f"{folder.name}/{name}")
                run.settings = settings[name]
                generator = _train(run, tasks, validation).generator
            made = _with(learner, generator, learner.inner_steps)
            on_main(accelerator, lambda: save_pretrained(made, folder / FINAL))
    last = from_pretrained(folder / FINAL, learner.backbone).to(accelerator.device)
    return _with(learner, last.generator, learner.inner_steps)


def learning(generator: AbstractGenerator, what: Learn) -> AbstractGenerator:
    """The generator itself; or where less than all of it is to be trained, a copy of which that is."""
    if what == "all":
        return generator
    generator = deepcopy(generator)
    generator.learn(what)
    return generator


def _compare(
    runs: Mapping[str, tuple[MetaLearner, TrainingConfig]],
    tasks: TaskSource,
    validation: TaskSource,
    folder: Path,
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:
    """The fingerprint of every stage, after a comparison with what its folder holds. Nothing is written."""
    settings: dict[str, dict[str, Any]] = {}
    before, sources = "", {}
    for name, (learner, config) in runs.items():
        run = Run(learner, config, folder / name, accelerator)
        check_saving(learner)
        run.settings = fingerprint(learner, config, before)
        sources = sources or _identities(run, tasks, validation)
        settings[name] = run.settings = run.settings | sources
        run.compare()
        before = f"the best of {name}"
    return settings


def _with(learner: MetaLearner, generator: AbstractGenerator, inner_steps: int) -> MetaLearner:
    return MetaLearner(
        learner.backbone,
        generator,
        learner.head,
        inner_steps=inner_steps,
        optimizer=learner.optimizer,
        estimator=learner.estimator,
        lite_examples=learner.lite_examples,
    )
