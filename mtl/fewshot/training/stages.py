"""Meta-training in stages, such as many cheap steps without the inner loop before fewer steps through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from mtl.episode import TaskSource
from mtl.fewshot.generators import AbstractGenerator
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loop import train


@dataclass(frozen=True)
class Stage:
    """What differs from one stage to the next; the names are those of :class:`TrainingConfig`.

    Args:
        inner_steps: gradient steps per task, >= 0; without any (0), an outer step costs one pass through the network.
        steps: outer steps; a stage of 0 is skipped.
        tasks_per_step: tasks per outer step.
        outer_lr: of the generator's weights.
        validate_every: outer steps between validations.
    """

    inner_steps: int
    steps: int
    tasks_per_step: int
    outer_lr: float
    validate_every: int = 200

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

    Called again with the same arguments, it continues where it stopped, see :func:`mtl.train`.

    Args:
        learner: its generator is trained in place in the first stage.
        stages: in order.
        tasks: every stage begins at episode 0.
        validation: see :func:`mtl.train`.
        config: the settings that all stages share.
        folder: gets one run folder per stage, ``<inner steps>-inner-steps``.

    Returns:
        The given learner with the best generator of the last stage, and its own number of inner steps.

    Raises:
        ValueError: when two stages have the same number of inner steps, and would share a folder; and what
            :func:`mtl.train` raises.
    """
    stages = [stage for stage in stages if stage.steps]
    if len({stage.folder for stage in stages}) < len(stages):
        raise ValueError(f"two stages share a folder ({[s.folder for s in stages]}); give each its own inner_steps")
    accelerator, generator = accelerator or Accelerator(), learner.generator
    for stage in stages:
        changes = {k: v for k, v in asdict(stage).items() if k != "inner_steps"}
        settings = replace(config, **changes)
        trained = _with(learner, generator, stage.inner_steps)
        generator = train(trained, tasks, validation, settings, Path(folder) / stage.folder, accelerator).generator
    return _with(learner, generator, learner.inner_steps)


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
