"""Run by test_training.py and stress_kills.py in a process of its own: ``train_blobs.py FOLDER STEPS SECONDS``."""

import sys
import time

import torch
from accelerate import Accelerator
from tiny import Blobs, backbone

import mtl


class Slow(Blobs):
    """Tasks that take a while, so that a kill lands in the middle of a run."""

    def sample(self, index: int) -> mtl.Episode:
        time.sleep(self.pause)
        return super().sample(index)


def main(folder: str, steps: int, pause: float) -> None:
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
