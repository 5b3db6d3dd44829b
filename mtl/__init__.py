"""Meta-transfer learning on frozen pretrained networks."""

from mtl.estimators import (
    AbstractEstimator,
    Exact,
    FirstOrder,
    MetaGradient,
    Rematerialised,
    StructuralZeroWarning,
    Truncated,
    Windowed,
)
from mtl.inner import AbstractInnerOptimizer, InnerProblem, InnerSGD, solve
from mtl.pulls import AbstractPull, FiniteDifference, Reverse

__version__ = "0.1.0"

__all__ = [
    "AbstractEstimator",
    "AbstractInnerOptimizer",
    "AbstractPull",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "InnerProblem",
    "InnerSGD",
    "MetaGradient",
    "Rematerialised",
    "Reverse",
    "StructuralZeroWarning",
    "Truncated",
    "Windowed",
    "solve",
]
