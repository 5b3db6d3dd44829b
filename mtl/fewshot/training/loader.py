"""The episodes of this process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from mtl.episode import Episode, TaskSource, stack_by_shape
from mtl.fewshot.training.config import TrainingConfig


class _Episodes(Dataset):
    def __init__(self, tasks: TaskSource) -> None:
        self.tasks = tasks

    def __getitem__(self, index: int) -> Episode:
        return self.tasks.sample(index)


def episode_loader(tasks: TaskSource, config: TrainingConfig, step: int, accelerator: Accelerator) -> DataLoader:
    """This process's batches from ``step`` on: task ``i`` of a step belongs to process ``i mod processes``."""

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
        generator=torch.Generator(),  # the loader draws a seed, which must not come from the global generator
    )


def _collate(episodes: list[Episode]) -> list[Episode]:
    return [episode for _, episode in stack_by_shape(episodes)]
