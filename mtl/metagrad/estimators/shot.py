"""Exact meta-gradient that also asks for an inner loss with little curvature along the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import Adjoint, MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import unroll


@dataclass(frozen=True)
class SHOT(AbstractEstimator):
    r"""Penalise how far a few large inner steps end from the K small ones (arXiv 2310.02751).

    .. math:: g = \frac{d}{d\phi} \Big[ F(\theta_K, \phi) +
              \frac{\text{penalty}}{2} \big\lVert \hat\theta - \operatorname{stop}(\theta_K) \big\rVert^2 \Big]

    :math:`\hat\theta` comes of the same start and the same optimiser, but its gradient is evaluated once per window, as
    in lazy windows; with gradient descent and the default that is one step of size ``K * lr``, the paper's. The two
    differ by what curvature did along the way, so the penalty flattens the inner loss there. As in the released code,
    the K-step result is the reference and takes no gradient from the penalty. The paper compares predictions on the
    query set by their KL divergence; here, where losses say nothing of predictions, it is the distance of the weights.

    Cost: the exact sweep's K gradients and K pulls, and K/window more of each; memory of one step.
    Equals: :class:`mtl.Exact` for ``penalty=0`` and for ``window=1``; otherwise the exact gradient of another
    objective. The losses that are returned are those of the K steps, without the penalty; the diagnostic ``gap`` is the
    distance, on average over tasks.

    Args:
        penalty: weight of half the squared distance, >= 0. The released code has 0.1, on its own distance.
        window: small steps that a large one stands for, at least 1; None: all K.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when a number is outside its range.
    """

    penalty: float = 0.1
    window: int | None = None
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(self.penalty >= 0, "penalty", "a number >= 0; 0 is the exact gradient")
        fine = self.window is None or self.window >= 1
        self._require(fine, "window", "at least one inner step, or None for all of them")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep, window = Sweep(problem, meta, self.pull), self.window or max(1, problem.num_steps)
        fine, outer = sweep.trajectory, sweep.adjoint
        coarse = unroll(sweep.problem, meta, reuse=window)  # with what the small steps drew
        gap = tensors.add(coarse.weights[-1], fine.weights[-1], -1.0)
        share = torch.full_like(sweep.losses, self.penalty / len(sweep.losses))
        sweep.trajectory = coarse
        sweep.adjoint = Adjoint(tensors.scale(gap, share), tensors.zeros_like(outer.state), tensors.zeros_like(meta))
        for start in reversed(range(0, problem.num_steps, window)):
            sweep.back(start, min(start + window, problem.num_steps))
        sweep.release()
        penalty, sweep.trajectory, sweep.adjoint = sweep.adjoint, fine, outer
        for step in reversed(range(problem.num_steps)):
            sweep.back(step, step + 1)
        sweep.adjoint = sweep.adjoint.plus(penalty)
        sweep.diagnostics["gap"] = tensors.norm(gap).mean()
        return replace(sweep.finish(), gradients=fine.evaluations + coarse.evaluations)
