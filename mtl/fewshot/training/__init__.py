"""Meta-training: the outer loop on Accelerate, on any number of processes. It resumes, and leaves bad episodes out."""

from mtl.fewshot.training.checkpoints import read_metrics
from mtl.fewshot.training.config import TrainingConfig
from mtl.fewshot.training.loop import Stage, train, train_stages
from mtl.fewshot.training.run import NO_BEST, NonFiniteLosses

__all__ = ["NO_BEST", "NonFiniteLosses", "Stage", "TrainingConfig", "read_metrics", "train", "train_stages"]
