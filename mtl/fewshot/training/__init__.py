"""Meta-training: the outer loop on Accelerate, on any number of processes. It resumes, and leaves bad episodes out."""

from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loop import train
from mtl.fewshot.training.run import NO_BEST, NonFiniteLosses
from mtl.fewshot.training.stages import Stage, train_stages

__all__ = ["NO_BEST", "NonFiniteLosses", "Stage", "TrainingConfig", "train", "train_stages"]
