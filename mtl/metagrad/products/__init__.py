r"""Pulls: how Hessian-vector products (HVPs) of the inner loss are evaluated.

At an anchor, the fast weights :math:`\theta` of one inner step, write :math:`H = \partial^2 L/\partial\theta^2` and
:math:`M = \partial^2 L/\partial\phi\,\partial\theta`. One *pull* takes a cotangent :math:`c` (one tensor per fast
weight) and returns the pair :math:`(H c,\ M c)`: it pulls a gradient one step back through the inner loop, to the
weights before the step and to the meta-parameters. All pulls honour the same contract and are interchangeable; they
differ in cost and in what they ask of the network.
"""

from mtl.metagrad.products.automatic import Automatic
from mtl.metagrad.products.base import AbstractPull, Known, Products
from mtl.metagrad.products.differences import FiniteDifference
from mtl.metagrad.products.forward import ForwardOverReverse
from mtl.metagrad.products.names import PULLS, PullChoice, as_pull
from mtl.metagrad.products.reverse import Reverse
from mtl.metagrad.products.twice import require_double_backward, twice_differentiable

__all__ = [
    "PULLS",
    "AbstractPull",
    "Automatic",
    "FiniteDifference",
    "ForwardOverReverse",
    "Known",
    "Products",
    "PullChoice",
    "Reverse",
    "as_pull",
    "require_double_backward",
    "twice_differentiable",
]
