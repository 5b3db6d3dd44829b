"""Meta-gradient from perturbed copies of the fast weights, without a second derivative."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.sweep import MetaGradient, Sweep, outer_adjoint
from mtl.metagrad.tensors import Tensors


@dataclass(frozen=True)
class EvoGrad(AbstractEstimator):
    r"""Put a step of evolution in the place of the last inner step, and differentiate that (arXiv 2106.10575).

    .. math:: \theta_i = \theta_{K-1} + \sigma \epsilon_i, \qquad
              w = \operatorname{softmax}_i\big(-L(\theta_i, \phi) / \tau\big), \qquad
              \theta^* = \sum_i w_i \theta_i, \qquad g = \frac{d}{d\phi} F(\theta^*, \phi)

    with Gaussian :math:`\epsilon_i`, drawn for each task alone. The meta-parameters act through the weights :math:`w`:
    one plain gradient per copy, never a gradient of a gradient, so fused attention and activation checkpointing work.
    The inner loop itself, and the losses and weights that are returned, are those of K ordinary steps. The cotangent of
    :math:`\theta_{K-1}` goes to the initial weights as it is; the paper has no such route.

    It trains what acts through the initial weights (type I, without what the other steps do to them), in the outer loss
    (D) and in the last inner loss (L). Zero on step sizes (O) and on what acts in earlier losses only.

    Cost: K gradients, then for each copy a forward pass and a gradient, and two outer gradients; no pull. Memory of one
    plain gradient. Reads one number per task from the device.
    Equals: :class:`mtl.metagrad.Truncated` over one step of gradient descent of size ``sigma**2 / temperature``, as
    sigma goes to zero at a fixed temperature, where the covariance of the noise is the identity. A few copies see a
    random subspace of as many dimensions: right on average but for a factor (copies - 1) / copies, and noisy where
    fast weights are many.

    Args:
        copies: perturbed copies, at least 2; the paper takes 2.
        sigma: standard deviation of the perturbations, > 0.
        temperature: :math:`\tau > 0`; ``sigma**2 / temperature`` stands for the inner step size. Where the losses of
            the copies differ by much more than it, a single copy takes all the weight.
        noise_seed: of the perturbations. They depend on it and on the task's last inner gradient: the same call gives
            the same result, the next outer step draws others.

    Raises:
        ValueError: when a number is outside its range.
    """

    copies: int = 2
    sigma: float = 0.1
    temperature: float = 0.1
    noise_seed: int = 0

    def __post_init__(self) -> None:
        self._require(self.copies >= 2, "copies", "2 or more; one has nothing to compare with")
        self._require(self.sigma > 0, "sigma", "a positive number")
        self._require(self.temperature > 0, "temperature", "a positive number")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta)
        if problem.num_steps == 0:
            return sweep.finish()
        problem = sweep.problem
        warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"init", "outer", "last"})
        last, start = problem.num_steps - 1, sweep.trajectory.weights[-2]
        noise = perturbations(start, sweep.trajectory.gradients[-1], self.copies, self.noise_seed)
        with torch.no_grad():
            losses = [problem.inner_loss(tensors.add(start, e, self.sigma), meta, last) for e in noise]
        shares = torch.softmax(-torch.stack(losses) / self.temperature, 0)
        mixed = start
        for e, share in zip(noise, shares, strict=True):
            mixed = tensors.add(mixed, tensors.scale(e, share), self.sigma)
        _, adjoint, _ = outer_adjoint(problem, meta, replace(sweep.trajectory, weights=[mixed]))
        along = torch.stack([tensors.dot(adjoint.weights, e) for e in noise]) * self.sigma
        seeds = -shares * (along - (shares * along).sum(0)) / self.temperature  # d F / d losses, (copies, tasks)
        for e, seed in zip(noise, seeds, strict=True):
            theta, phi = tensors.leaf(tensors.add(start, e, self.sigma)), tensors.leaf(meta)
            with torch.enable_grad():
                loss = problem.inner_loss(theta, phi, last)
            scale = problem.execution.loss_scale
            h, m = tensors.grad(loss, theta, phi, cotangents=[seed.to(loss.dtype)], magnitude=scale)
            adjoint = adjoint.with_products(h, m)
        sweep.adjoint = adjoint
        return replace(sweep.finish(), gradients=sweep.trajectory.evaluations + self.copies)


def perturbations(like: Tensors, gradient: Tensors, copies: int, seed: int) -> list[Tensors]:
    """Standard normal noise in the shapes of the fast weights: one draw per copy, each task's keyed by its gradient."""
    keys = tensors.norm(gradient).float().view(torch.int32).tolist()
    generators = [torch.Generator().manual_seed((key ^ seed * 0x9E3779B1) & 0xFFFFFFFF) for key in keys]

    def draw(value: Tensor) -> Tensor:
        return torch.stack([torch.randn(value.shape[1:], generator=g) for g in generators]).to(value)

    return [{k: draw(v) for k, v in like.items()} for _ in range(copies)]
