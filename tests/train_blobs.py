"""A training run in a process of its own, for test_training.py and stress_kills.py, which kill it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import Blobs, backbone

import mtl

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train_blobs"])  # the imports, done once, take longer than a run


class Slow(Blobs):
    """Tasks that take a while, so that a kill lands in the middle of a run."""

    def sample(self, index: int) -> mtl.Episode:
        time.sleep(self.pause)
        return super().sample(index)


def main(folder: Path, steps: int, pause: float = 0.0) -> None:
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2)
    config = mtl.TrainingConfig(
        steps=steps, tasks_per_step=2, warmup=2, validate_every=4, validation_tasks=4, save_every=2
    )
    tasks = Slow()
    tasks.pause = pause / 2
    mtl.train(learner, tasks, Blobs(), config, folder, Accelerator(cpu=True))
