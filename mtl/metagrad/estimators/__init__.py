"""Meta-gradient estimators: one algorithm per file, one interface."""

from mtl.metagrad.estimators.base import AbstractEstimator, StructuralZeroWarning
from mtl.metagrad.estimators.binomial import Binomial
from mtl.metagrad.estimators.evograd import EvoGrad
from mtl.metagrad.estimators.exact import Exact
from mtl.metagrad.estimators.first_order import FirstOrder
from mtl.metagrad.estimators.implicit import ImplicitMAML, Neumann, proximal
from mtl.metagrad.estimators.kfac import KFAC
from mtl.metagrad.estimators.mixing import HorizonMixing, TruncationMixing
from mtl.metagrad.estimators.one_step import SAMA, OneStep
from mtl.metagrad.estimators.rematerialised import Rematerialised
from mtl.metagrad.estimators.reptile import Reptile
from mtl.metagrad.estimators.shot import SHOT
from mtl.metagrad.estimators.truncated import Truncated
from mtl.metagrad.estimators.windowed import Windowed
from mtl.metagrad.registry import Registry
from mtl.metagrad.sweep import MetaGradient

ESTIMATORS = Registry("estimator", "mtl.metagrad.ESTIMATORS")
"""Every estimator by the name that command lines use, one row each: command lines, planner, benchmarks, tests and docs
read it."""
_row = ESTIMATORS.register
_row("exact", Exact, help="exact, by autograd through the unrolled loop; memory grows with its length")
_row("rematerialised", Rematerialised, help="exact, in the memory of one inner step")
_row("windowed", Windowed, help="one second-order product per window of inner steps; the default")
_row("truncated", Truncated, help="exact through the last inner steps, then straight to the initial weights")
_row("binomial", Binomial, help="keeps the terms with a bounded number of curvatures")
_row("horizon-mixing", HorizonMixing, help="judges the weights after every inner step, not only the last")
_row("truncation-mixing", TruncationMixing, help="credits late inner steps more than early ones")
_row("neumann", Neumann, help="implicit gradient of a solved inner problem, by a Neumann series")
_row("imaml", ImplicitMAML, help="implicit gradient of an inner problem tied to its start")
_row("kfac", KFAC, help="implicit gradient, preconditioned by the factors of linear layers")
_row("one-step", OneStep, help="differentiates the last inner step only (T1-T2)")
_row("sama", SAMA, help="one implicit step with the optimiser's own Jacobian, no second derivative")
_row("first-order", FirstOrder, help="drops every second derivative (FOMAML)")
_row("evograd", EvoGrad, help="perturbed copies, weighted by their loss, in place of the last step")
_row("shot", SHOT, help="exact, with a penalty on the gap between many small steps and one large")
_row("reptile", Reptile, help="moves the initial weights towards the adapted ones")

__all__ = [
    "ESTIMATORS",
    "KFAC",
    "SAMA",
    "SHOT",
    "AbstractEstimator",
    "Binomial",
    "EvoGrad",
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
