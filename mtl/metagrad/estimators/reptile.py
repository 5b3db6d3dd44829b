"""The Reptile direction, for meta-parameters that reach the initial weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.sweep import Adjoint, MetaGradient, through_init
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import unroll


@dataclass(frozen=True)
class Reptile(AbstractEstimator):
    r"""Move the initial weights towards the adapted ones (arXiv 1803.02999), pulled through what generated them.

    .. math:: g = \Big(\frac{\partial \theta_0}{\partial \phi}\Big)^{\!\top} (\theta_0 - \theta_K)

    A direction, not a gradient of the outer loss: the query set plays no part in it, so put the examples that should
    count into the support set. Its length grows with K and the inner step size.

    Cost: K gradients, no pull.
    Equals: ``lr * K`` times the gradient of the inner loss, to first order in ``lr``. Exactly zero on whatever does not
    reach the initial weights, and everywhere for K = 0.

    Warns:
        StructuralZeroWarning: naming such meta-parameters and an estimator that does train them.
    """

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        trajectory = unroll(problem, meta)
        phi = tensors.leaf(meta)
        with torch.enable_grad():
            losses = problem.outer_loss(trajectory.weights[-1], phi)
        trajectory = replace(trajectory, reached=trajectory.reached | {"outer": tensors.reaches([losses], phi)})
        losses = losses.detach()  # the graph is not needed any more
        warn_of_zeros(self, problem, meta, trajectory, follows={"init"})
        first, last = trajectory.weights[0], trajectory.weights[-1]
        share = torch.full_like(losses, 1 / len(losses))
        direction = tensors.scale(tensors.add(first, last, -1.0), share)
        grads = through_init(problem, meta, Adjoint(direction, {}, tensors.zeros_like(meta)))
        return MetaGradient(losses, grads, tensors.clone(last), trajectory.evaluations, 0)
