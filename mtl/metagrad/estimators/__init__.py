"""Meta-gradient estimators: one algorithm per file, one interface."""

from mtl.metagrad.estimators.base import AbstractEstimator, MetaGradient, StructuralZeroWarning
from mtl.metagrad.estimators.binomial import Binomial
from mtl.metagrad.estimators.exact import Exact
from mtl.metagrad.estimators.first_order import FirstOrder
from mtl.metagrad.estimators.implicit import ImplicitMAML, Neumann, proximal
from mtl.metagrad.estimators.mixing import HorizonMixing, TruncationMixing
from mtl.metagrad.estimators.one_step import SAMA, OneStep
from mtl.metagrad.estimators.rematerialised import Rematerialised
from mtl.metagrad.estimators.reptile import Reptile
from mtl.metagrad.estimators.truncated import Truncated
from mtl.metagrad.estimators.windowed import Windowed

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
