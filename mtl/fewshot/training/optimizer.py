"""Parameter groups of the outer optimiser, and the schedule that they share."""

from __future__ import annotations

import math
from typing import Any

from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.training.config import TrainingConfig


def parameter_groups(learner: MetaLearner, config: TrainingConfig) -> list[dict[str, Any]]:
    """Step sizes have their own learning rate; vectors (gates, offsets, norms) have no weight decay."""
    rates = [learner.generator.step_sizes_of.log_lr]
    others = [p for p in learner.generator.parameters() if p is not rates[0]]
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
