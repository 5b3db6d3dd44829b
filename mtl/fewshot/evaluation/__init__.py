"""Compare methods on the same episodes: a learner, controls that show whether it really adapts, and baselines."""

from mtl.fewshot.evaluation.comparing import evaluate
from mtl.fewshot.evaluation.controls import controls, learner_method, static_control
from mtl.fewshot.evaluation.tuning import tune, tune_baselines

__all__ = ["controls", "evaluate", "learner_method", "static_control", "tune", "tune_baselines"]
