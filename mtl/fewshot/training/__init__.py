"""Meta-training: the outer loop on Accelerate, on any number of processes, resumable, bad episodes left out."""

from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loop import train
from mtl.fewshot.training.run import NOTHING_KEPT, NonFiniteLosses

__all__ = ["NOTHING_KEPT", "NonFiniteLosses", "TrainingConfig", "train"]
