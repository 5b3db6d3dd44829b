"""Few-shot learning on a frozen network: generators, heads, the learner, training, comparison, saving, export."""

from mtl.fewshot.adapted import Adapted
from mtl.fewshot.baselines import Method, baselines
from mtl.fewshot.evaluation import controls, evaluate, learner_method, static_control, tune, tuned_baselines
from mtl.fewshot.exporting import export
from mtl.fewshot.generators import (
    GENERATORS,
    AbstractGenerator,
    AbstractSiteGenerator,
    Static,
    StepSizes,
    SupportConditioned,
    SupportView,
    TaskCode,
)
from mtl.fewshot.heads import HEADS, AbstractHead, Cosine, Linear, NearestClassMean, Ridge
from mtl.fewshot.learner import MetaLearner, MetaStep
from mtl.fewshot.peft_baselines import peft_baselines
from mtl.fewshot.saving import from_pretrained, save_pretrained
from mtl.fewshot.training import NonFiniteLosses, Stage, TrainingConfig, train, train_stages

__all__ = [
    "GENERATORS",
    "HEADS",
    "AbstractGenerator",
    "AbstractHead",
    "AbstractSiteGenerator",
    "Adapted",
    "Cosine",
    "Linear",
    "MetaLearner",
    "MetaStep",
    "Method",
    "NearestClassMean",
    "NonFiniteLosses",
    "Ridge",
    "Stage",
    "Static",
    "StepSizes",
    "SupportConditioned",
    "SupportView",
    "TaskCode",
    "TrainingConfig",
    "baselines",
    "controls",
    "evaluate",
    "export",
    "from_pretrained",
    "learner_method",
    "peft_baselines",
    "save_pretrained",
    "static_control",
    "train",
    "train_stages",
    "tune",
    "tuned_baselines",
]
