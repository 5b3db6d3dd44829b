"""Meta-gradients through an inner loop, for any bilevel problem: state it once, estimate its gradient in many ways.

This sub-package imports torch and nothing else. An :class:`InnerProblem` says what is adapted and judged, an estimator
turns it and the meta-parameters into a :class:`MetaGradient`.
"""

from mtl.metagrad import estimators
from mtl.metagrad.diagnostics import Agreement, calibrate_radius, curvature, self_check
from mtl.metagrad.emitted_sgd import EmittedSGD
from mtl.metagrad.estimators import *  # noqa: F403 (its __all__ is part of ours)
from mtl.metagrad.functional import Functional
from mtl.metagrad.optimizers import INNER_OPTIMIZERS, AbstractInnerOptimizer, InnerAdam, InnerNormalised, InnerSGD
from mtl.metagrad.options import EstimatorOptions, InnerOptions, make_estimator, representatives
from mtl.metagrad.problem import InnerProblem, solve
from mtl.metagrad.products import AbstractPull, Automatic, FiniteDifference, ForwardOverReverse, Reverse
from mtl.metagrad.registry import Registry
from mtl.metagrad.storage import OnDevice, OnHost, Regrouped, StateStorage
from mtl.metagrad.sweep import Sweep
from mtl.metagrad.trajectory import unroll

__all__ = [
    "INNER_OPTIMIZERS",
    "AbstractInnerOptimizer",
    "AbstractPull",
    "Agreement",
    "Automatic",
    "EmittedSGD",
    "EstimatorOptions",
    "FiniteDifference",
    "ForwardOverReverse",
    "Functional",
    "InnerAdam",
    "InnerNormalised",
    "InnerOptions",
    "InnerProblem",
    "InnerSGD",
    "OnDevice",
    "OnHost",
    "Registry",
    "Regrouped",
    "Reverse",
    "StateStorage",
    "Sweep",
    "calibrate_radius",
    "curvature",
    "make_estimator",
    "representatives",
    "self_check",
    "solve",
    "unroll",
]
__all__ += estimators.__all__
