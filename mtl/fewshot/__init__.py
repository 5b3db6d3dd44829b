"""Few-shot learning on a frozen network: generators, heads, the learner, training, comparison, saving, export."""

from mtl.fewshot import generators
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.adapted_task import AdaptedTask, load_task
from mtl.fewshot.affinity import Affinity, affinity
from mtl.fewshot.baselines import BASELINES, Baseline, Method, Setup, baselines
from mtl.fewshot.calibration import Calibration
from mtl.fewshot.choosing import Choice
from mtl.fewshot.evaluation import controls, evaluate, learner_method, static_control, tune, tune_baselines
from mtl.fewshot.exporting import export
from mtl.fewshot.generators import *  # noqa: F403 (its __all__ is part of ours)
from mtl.fewshot.heads import HEADS, AbstractHead, CentredRidge, Cosine, Linear, NearestClassMean, Ridge
from mtl.fewshot.kept_examples import load_examples
from mtl.fewshot.learner import MetaLearner, MetaStep
from mtl.fewshot.many import ManyAdapted
from mtl.fewshot.peft_baselines import PEFT_BASELINES, choose_baselines, peft_baselines
from mtl.fewshot.ready import adapt, adapt_many, load_generator, save_ready
from mtl.fewshot.saving import from_pretrained, save_pretrained
from mtl.fewshot.sharing import model_card, push_to_hub
from mtl.fewshot.statistics import FeatureStatistics
from mtl.fewshot.training import NonFiniteLosses, Stage, TrainingConfig, read_metrics, train, train_stages

__all__ = [
    "BASELINES",
    "HEADS",
    "PEFT_BASELINES",
    "AbstractHead",
    "Adapted",
    "AdaptedTask",
    "Affinity",
    "Baseline",
    "Calibration",
    "CentredRidge",
    "Choice",
    "Cosine",
    "FeatureStatistics",
    "Linear",
    "ManyAdapted",
    "MetaLearner",
    "MetaStep",
    "Method",
    "NearestClassMean",
    "NonFiniteLosses",
    "Ridge",
    "Setup",
    "Stage",
    "TrainingConfig",
    "adapt",
    "adapt_many",
    "affinity",
    "baselines",
    "choose_baselines",
    "controls",
    "evaluate",
    "export",
    "from_pretrained",
    "learner_method",
    "load_examples",
    "load_generator",
    "load_task",
    "model_card",
    "peft_baselines",
    "push_to_hub",
    "read_metrics",
    "save_pretrained",
    "save_ready",
    "static_control",
    "train",
    "train_stages",
    "tune",
    "tune_baselines",
]
__all__ += generators.__all__
