"""Meta-gradients through an inner loop, for any bilevel problem: state it once, estimate its gradient in many ways.

This sub-package imports torch and nothing else. An :class:`InnerProblem` says what is adapted and judged, an estimator
turns it and the meta-parameters into a :class:`MetaGradient`.
"""

from mtl.metagrad.diagnostics import Agreement, calibrate_radius, curvature, self_check
from mtl.metagrad.estimators import (
    ESTIMATORS,
    SAMA,
    SHOT,
    AbstractEstimator,
    Binomial,
    EvoGrad,
    Exact,
    FirstOrder,
    HorizonMixing,
    ImplicitMAML,
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
from mtl.metagrad.functional import Functional
from mtl.metagrad.optimizers import INNER_OPTIMIZERS, AbstractInnerOptimizer, InnerAdam, InnerSGD
from mtl.metagrad.options import EstimatorOptions, make_estimator, representatives
from mtl.metagrad.problem import InnerProblem, solve
from mtl.metagrad.products import AbstractPull, FiniteDifference, ForwardOverReverse, Reverse
from mtl.metagrad.registry import Registry
from mtl.metagrad.storage import OnDevice, OnHost, StateStorage
from mtl.metagrad.sweep import MetaGradient, Sweep

__all__ = [
    "ESTIMATORS",
    "INNER_OPTIMIZERS",
    "SAMA",
    "SHOT",
    "AbstractEstimator",
    "AbstractInnerOptimizer",
    "AbstractPull",
    "Agreement",
    "Binomial",
    "EstimatorOptions",
    "EvoGrad",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "ForwardOverReverse",
    "Functional",
    "HorizonMixing",
    "ImplicitMAML",
    "InnerAdam",
    "InnerProblem",
    "InnerSGD",
    "MetaGradient",
    "Neumann",
    "OnDevice",
    "OnHost",
    "OneStep",
    "Registry",
    "Rematerialised",
    "Reptile",
    "Reverse",
    "StateStorage",
    "StructuralZeroWarning",
    "Sweep",
    "Truncated",
    "TruncationMixing",
    "Windowed",
    "calibrate_radius",
    "curvature",
    "make_estimator",
    "proximal",
    "representatives",
    "self_check",
    "solve",
]
