"""Settings of meta-training, and the outer optimiser that they describe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mtl.fewshot.generators import AbstractGenerator


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of meta-training.

    Args:
        steps: outer steps.
        tasks_per_step: tasks per outer step, over all processes.
        tasks_per_chunk: tasks in one forward pass; lower it when memory is short. Results are the same, except that
            adaptive windows choose their sub-steps for the worst task of a chunk.
        outer_lr: of the generator's weights (AdamW).
        step_size_lr: of the logarithms of the inner step sizes.
        weight_decay: of the generator's matrices.
        warmup: steps of linear warm-up, before a cosine decay to a twentieth.
        clip: largest norm of the meta-gradient.
        validate_every: steps between validations; the best generator by validation accuracy is kept.
        validation_tasks: episodes per validation, the same ones each time.
        save_every: steps between checkpoints; a kill loses at most as many.
        patience: consecutive steps without any finite episode before training stops with an error.
        workers: processes that prepare episodes; 0 prepares them in the main process.
        self_check: compare the estimator with the exact gradient on the first episode, before the first step.
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
    self_check: bool = True

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"TrainingConfig(clip={self.clip}): must be positive; for no clipping use math.inf")
        may_be_zero = ("outer_lr", "step_size_lr", "weight_decay", "warmup", "workers", "clip", "self_check")
        for name, value in asdict(self).items():
            least = 0 if name in may_be_zero else 1
            if not value >= least:
                raise ValueError(f"TrainingConfig({name}={value}): expected {least} or more")


def parameter_groups(generator: AbstractGenerator, config: TrainingConfig) -> list[dict[str, Any]]:
    """Step sizes have their own learning rate; vectors (gates, offsets, norms) have no weight decay."""
    rates = [generator.step_sizes_of.log_lr]
    others = [p for p in generator.parameters() if p is not rates[0]]
    return [
        {"params": [p for p in others if p.dim() > 1], "lr": config.outer_lr, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "lr": config.outer_lr, "weight_decay": 0.0},
        {"params": rates, "lr": config.step_size_lr, "weight_decay": 0.0},
    ]


def schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
