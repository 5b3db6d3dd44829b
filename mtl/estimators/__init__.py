"""Meta-gradient estimators: one algorithm per file, one interface."""

from mtl.estimators.base import AbstractEstimator, MetaGradient, StructuralZeroWarning
from mtl.estimators.exact import Exact
from mtl.estimators.first_order import FirstOrder
from mtl.estimators.rematerialised import Rematerialised
from mtl.estimators.truncated import Truncated
from mtl.estimators.windowed import Windowed

__all__ = [
    "AbstractEstimator",
    "Exact",
    "FirstOrder",
    "MetaGradient",
    "Rematerialised",
    "StructuralZeroWarning",
    "Truncated",
    "Windowed",
]
