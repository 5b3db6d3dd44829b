"""Meta-transfer learning on frozen pretrained networks.

A generator reads a task's support set and emits scale and shift vectors for a frozen timm or transformers backbone, a
short inner loop refines them, and the result is a plain checkpoint. Everything public is a flat name here.
"""

from importlib.metadata import version

from mtl.backbones import Backbone, load_backbone, shard
from mtl.baselines import Method, baselines
from mtl.checkpoint import from_pretrained, save_pretrained
from mtl.data import (
    CharacterTasks,
    DocstringTasks,
    GlyphTasks,
    ImageTasks,
    TextTasks,
    TokenCache,
    docstring_split,
    open_images,
    open_texts,
    saved_split,
)
from mtl.diagnostics import Agreement, calibrated, curvature, self_check
from mtl.episode import Alternating, Episode, Examples, TaskSource, stacked
from mtl.estimators import (
    SAMA,
    AbstractEstimator,
    Binomial,
    Exact,
    FirstOrder,
    HorizonMixing,
    ImplicitMAML,
    MetaGradient,
    Neumann,
    OneStep,
    Rematerialised,
    Reptile,
    StructuralZeroWarning,
    Truncated,
    TruncationMixing,
    Windowed,
    proximal,
)
from mtl.evaluation import controls, evaluate, ours, static_control, tune, tuned_baselines
from mtl.exporting import export
from mtl.figures import accuracy_figure, curves_figure, episode_strip
from mtl.functional import Functional
from mtl.generators import GENERATORS, AbstractGenerator, Static, SupportConditioned, SupportView, TaskCode
from mtl.heads import HEADS, AbstractHead, Cosine, Linear, NearestClassMean, Ridge
from mtl.inner import AbstractInnerOptimizer, InnerAdam, InnerProblem, InnerSGD, solve
from mtl.keeping import AbstractKeeper, OnDevice, OnHost
from mtl.learner import Adapted, MetaLearner
from mtl.merging import Merged, merge
from mtl.modulation import Modulation, Site, find_sites
from mtl.peft_baselines import peft_baselines
from mtl.pulls import AbstractPull, FiniteDifference, ForwardOverReverse, Reverse
from mtl.report import Comparison, Row, mean_interval, paired, verdicts
from mtl.training import NonFiniteLosses, TrainingConfig, train

__version__ = version("mtl")

__all__ = [
    "GENERATORS",
    "HEADS",
    "SAMA",
    "AbstractEstimator",
    "AbstractGenerator",
    "AbstractHead",
    "AbstractInnerOptimizer",
    "AbstractKeeper",
    "AbstractPull",
    "Adapted",
    "Agreement",
    "Alternating",
    "Backbone",
    "Binomial",
    "CharacterTasks",
    "Comparison",
    "Cosine",
    "DocstringTasks",
    "Episode",
    "Exact",
    "Examples",
    "FiniteDifference",
    "FirstOrder",
    "ForwardOverReverse",
    "Functional",
    "GlyphTasks",
    "HorizonMixing",
    "ImageTasks",
    "ImplicitMAML",
    "InnerAdam",
    "InnerProblem",
    "InnerSGD",
    "Linear",
    "Merged",
    "MetaGradient",
    "MetaLearner",
    "Method",
    "Modulation",
    "NearestClassMean",
    "Neumann",
    "NonFiniteLosses",
    "OnDevice",
    "OnHost",
    "OneStep",
    "Rematerialised",
    "Reptile",
    "Reverse",
    "Ridge",
    "Row",
    "Site",
    "Static",
    "StructuralZeroWarning",
    "SupportConditioned",
    "SupportView",
    "TaskCode",
    "TaskSource",
    "TextTasks",
    "TokenCache",
    "TrainingConfig",
    "Truncated",
    "TruncationMixing",
    "Windowed",
    "accuracy_figure",
    "baselines",
    "calibrated",
    "controls",
    "curvature",
    "curves_figure",
    "docstring_split",
    "episode_strip",
    "evaluate",
    "export",
    "find_sites",
    "from_pretrained",
    "load_backbone",
    "mean_interval",
    "merge",
    "open_images",
    "open_texts",
    "ours",
    "paired",
    "peft_baselines",
    "proximal",
    "save_pretrained",
    "saved_split",
    "self_check",
    "shard",
    "solve",
    "stacked",
    "static_control",
    "train",
    "tune",
    "tuned_baselines",
    "verdicts",
]
