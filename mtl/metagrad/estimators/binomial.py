"""Meta-gradient from the binomial expansion of the product of inner steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, acts_within, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import Adjoint, MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class Binomial(AbstractEstimator):
    r"""Keep the terms with at most ``order`` curvatures of :math:`\prod_k (I - \alpha H_k)` (arXiv 2604.13263).

    .. math::

        s_0^k = v, \qquad s_l^k = s_l^{k+1} - \alpha H_k s_{l-1}^{k+1}, \qquad
        \lambda_k = \sum_{l \le L} s_l^k, \qquad \text{acc} \mathrel{-}= \alpha M_k \lambda_{k+1}

    with :math:`v` the gradient of the outer loss. The sums :math:`\lambda` of all orders are carried, and any optimiser
    in the place of :math:`-\alpha`. The pulls of one step share an anchor, so all but the first are cheap.

    Cost: K gradients and :math:`\sum_{l=0}^{\min(L, K-1)} (K - l)` pulls (none for ``order=0``): *more* than the exact
    sweep needs. In return, the steps do not wait for one another. Where the meta-parameters act through the initial
    weights and the outer loss alone, as in MAML, sums that no longer reach the result are let go, and L(K - L + 1) are
    enough: the cascade of the paper.
    Equals: :class:`mtl.Exact` when ``order >= K``, :class:`mtl.FirstOrder` for ``order=0``. Far from exact once
    ``K * lr * h_max`` exceeds the order: the series has not begun to converge.

    Args:
        order: L, most factors of curvature in a term, >= 0.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.
        damped: curvature counts L/K of what it is, as in the code that the paper's authors released. Another estimator
            than the formula, exact for ``order >= K`` too: its limit of convergence is K/L times as far, and in return
            it sees less curvature than there is (for K = 5, L = 1 and a factor of .302: .787, the formula -.064).

    Raises:
        ValueError: when ``order`` is negative.
    """

    order: int = 1
    pull: PullChoice = "reverse"
    damped: bool = False

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(self.order >= 0, "order", "0 (first-order) or more; K is exact")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        if self.order == 0:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"init", "outer", "update"})
            sweep.skip(0, problem.num_steps)
        elif problem.num_steps:
            outer = sweep.adjoint
            within = acts_within(problem, meta, sweep.trajectory)
            if self._back(sweep, within) and not within:  # in a loss between the first and the last alone
                sweep.adjoint = outer
                self._back(sweep, within=True)
        return sweep.finish()

    def _back(self, sweep: Sweep, within: bool) -> bool:
        """Walk back to the start; whether meta-parameters turned out to act in an inner loss."""
        steps, order = sweep.problem.num_steps, min(self.order, sweep.problem.num_steps)
        share = order / steps if self.damped else 1.0
        # Meta-parameters within the loop receive from the sum of all orders at every step, the initial weights at the
        # end only, where the sums of low orders do not count any more.
        acted: list[Tensor] = []
        sums = {0: sweep.adjoint}  # up to order 0, 1, ...; those that are not listed equal the last
        for walked in range(1, steps + 1):
            step = steps - walked
            sweep.release()
            carried = {n: sweep.through(step, step + 1, adjoint) for n, adjoint in sums.items()}
            last = max(carried)
            kept = range(0 if within else max(0, walked - (steps - order)), min(walked, order) + 1)
            needed = {n - 1 for n in kept if n} | ({last} if within else set())
            curved = {n: sweep.products(step, carried[n][1]) for n in sorted(needed)}
            acted += [m.any() for _, products in curved.values() for m in products.values()]
            received = carried[last][0].meta
            if within:  # only the full sum adds to the meta-parameters, and with its own products
                received = tensors.add(received, curved[last][1])
            sums = {n: replace(carried[min(n, last)][0], meta=received) for n in kept}
            sums |= {n: _with_curvature(sums[n], curved[n - 1][0], share) for n in kept if n}
        sweep.adjoint = sums[order]
        return bool(acted) and bool(torch.stack(acted).any())


def _with_curvature(adjoint: Adjoint, h: Tensors, share: float) -> Adjoint:
    return replace(adjoint, weights=tensors.add(adjoint.weights, h, share))
