"""Settings of meta-training."""

from __future__ import annotations

from dataclasses import dataclass


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
            raise ValueError(f"TrainingConfig(clip={self.clip}): must be positive; for no clipping use math.inf")
