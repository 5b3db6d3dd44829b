"""Meta-gradient from the binomial expansion of the product of inner steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
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
    sweep needs. In return, the steps do not wait for one another.
    Equals: :class:`mtl.Exact` when ``order >= K``, :class:`mtl.FirstOrder` for ``order=0``. Far from exact once
    ``K * lr * h_max`` exceeds the order: the series has not begun to converge.

    Args:
        order: most factors of curvature in a term, >= 0.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when ``order`` is negative.
    """

    order: int = 1
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(self.order >= 0, "order", "0 (first-order) or more; K is exact")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        if self.order == 0:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"init", "outer", "update"})
            sweep.skip(0, problem.num_steps)
        else:
            self._back(sweep)
        return sweep.finish()

    def _back(self, sweep: Sweep) -> None:
        orders = [sweep.adjoint]  # the sums up to order 0, 1, ...; those that are not listed equal the last
        for step in reversed(range(sweep.problem.num_steps)):
            sweep.release()
            carried = [sweep.through(step, step + 1, adjoint) for adjoint in orders]
            curved = [sweep.products(step, cotangent) for _, cotangent in carried]
            new = [carried[0][0]]
            new += [_with_curvature(direct, h) for (direct, _), (h, _) in zip(carried[1:], curved, strict=False)]
            if len(new) <= self.order:
                new.append(_with_curvature(carried[-1][0], curved[-1][0]))
            # Only the full sum adds to the meta-parameters, and with its own products.
            received = tensors.add(carried[-1][0].meta, curved[-1][1])
            orders = [replace(a, meta=received) for a in new]
        sweep.adjoint = orders[-1]


def _with_curvature(adjoint: Adjoint, h: Tensors) -> Adjoint:
    return replace(adjoint, weights=tensors.add(adjoint.weights, h))
