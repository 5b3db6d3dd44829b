"""Meta-gradient estimators: one algorithm per file, one interface."""

from mtl.estimators.base import AbstractEstimator, MetaGradient, StructuralZeroWarning
from mtl.estimators.binomial import Binomial
from mtl.estimators.exact import Exact
from mtl.estimators.first_order import FirstOrder
from mtl.estimators.implicit import ImplicitMAML, Neumann, proximal
from mtl.estimators.mixing import HorizonMixing, TruncationMixing
from mtl.estimators.one_step import SAMA, OneStep
from mtl.estimators.rematerialised import Rematerialised
from mtl.estimators.reptile import Reptile
from mtl.estimators.truncated import Truncated
from mtl.estimators.windowed import Windowed

__all__ = [
    "SAMA",
    "AbstractEstimator",
    "Binomial",
    "Exact",
    "FirstOrder",
    "HorizonMixing",
    "ImplicitMAML",
    "MetaGradient",
    "Neumann",
    "OneStep",
    "Rematerialised",
    "Reptile",
    "StructuralZeroWarning",
    "Truncated",
    "TruncationMixing",
    "Windowed",
    "proximal",
]
