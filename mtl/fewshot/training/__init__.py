"""Meta-training: the outer loop on Accelerate, on any number of processes. It resumes, and leaves bad episodes out."""

from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loop import train
from mtl.fewshot.training.run import NOTHING_KEPT, NonFiniteLosses
from mtl.fewshot.training.stages import Stage, train_stages

__all__ = ["NOTHING_KEPT", "NonFiniteLosses", "Stage", "TrainingConfig", "train", "train_stages"]
