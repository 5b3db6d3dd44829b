"""Is this estimator any good here? Curvature, agreement with the exact gradient, and a usable finite difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.estimators import AbstractEstimator, Rematerialised
from mtl.metagrad.optimizers import InnerSGD
from mtl.metagrad.problem import InnerProblem, draw, inner_gradient, replaying
from mtl.metagrad.products import AbstractPull, FiniteDifference, Reverse, as_pull
from mtl.metagrad.sweep import Adjoint, outer_adjoint, through_updates
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import unroll


@dataclass(frozen=True)
class Agreement:
    """How close one estimator's gradient is to the exact one, on one problem.

    Args:
        estimator: what was checked.
        cosine: per meta-parameter, in ``-1 .. 1``; ``nan`` where either is zero.
        norm_ratio: per meta-parameter, estimated over exact; ``nan`` where the exact one is zero.
    """

    estimator: AbstractEstimator
    cosine: dict[str, float]
    norm_ratio: dict[str, float]

    def __str__(self) -> str:
        groups = (f"{k} {c:.4f} ({self.norm_ratio[k]:.2f})" for k, c in self.cosine.items())
        return f"{self.estimator}, cosine to exact (norm ratio): {', '.join(groups)}"

    @property
    def worst(self) -> float:
        """The lowest cosine that is defined."""
        return min((c for c in self.cosine.values() if not math.isnan(c)), default=math.nan)


def self_check(
    estimator: AbstractEstimator, problem: InnerProblem, meta: Tensors, reference: AbstractEstimator | None = None
) -> Agreement:
    """Compare an estimator with the exact gradient, meta-parameter by meta-parameter.

    Cost: both estimators once. Worth doing on one episode of your own before a long run.

    Args:
        reference: taken for exact, by default :class:`mtl.Rematerialised`.

    >>> problem = InnerProblem(
    ...     init=lambda meta: {"w": meta["start"]},
    ...     inner_loss=lambda w, meta, step: (w["w"] ** 2).sum(1),
    ...     outer_loss=lambda w, meta: ((w["w"] - 1) ** 2).sum(1),
    ...     num_steps=4,
    ... )
    >>> check = self_check(Rematerialised(), problem, {"start": torch.ones(2, 3)})
    >>> round(check.cosine["start"], 4), round(check.norm_ratio["start"], 4)
    (1.0, 1.0)
    """
    found = estimator(problem, meta).grads
    exact = (reference or Rematerialised())(problem, meta).grads
    cosine, ratio = {}, {}
    for k in meta:
        a, b = found[k].flatten().double(), exact[k].flatten().double()
        lengths = float(a.norm()), float(b.norm())
        cosine[k] = float(a @ b) / (lengths[0] * lengths[1]) if all(lengths) else math.nan
        ratio[k] = lengths[0] / lengths[1] if lengths[1] else math.nan
    return Agreement(estimator, cosine, ratio)


def curvature(
    problem: InnerProblem, meta: Tensors, *, iterations: int = 20, pull: str | AbstractPull = "reverse", seed: int = 0
) -> Tensor:
    r"""Largest eigenvalue of inner step size times curvature, :math:`\alpha h_{\max}`, at the initial weights.

    By power iteration through the optimiser's first update, so learned step sizes per site count as they are used.
    Of gradient descent without momentum: a plain window of n steps is past its cliff where n times this exceeds 2; the
    inner loop itself diverges where this does. With momentum the steps add up to 1 / (1 - momentum) times as much.

    Cost: one gradient and ``iterations`` pulls on one anchor.

    Args:
        iterations: of power iteration, >= 1; the estimate approaches from below.

    Returns:
        ``(tasks,)``.

    Raises:
        ValueError: when ``iterations`` is not positive, or the optimiser is not :class:`mtl.InnerSGD`.
    """
    if not isinstance(problem.optimizer, InnerSGD):
        raise ValueError(
            f"curvature of {type(problem.optimizer).__name__}: its first step hardly depends on the gradient's size, "
            "so step size times curvature says nothing; replace the problem's optimizer by InnerSGD"
        )
    if iterations < 1:
        raise ValueError(f"curvature(iterations={iterations}): expected at least one")
    weights = tensors.detach(problem.init(tensors.detach(meta)))
    problem = replaying(problem, {0: draw(problem, weights, meta, 0)})
    state = problem.optimizer.init(weights)
    gradient = inner_gradient(problem, weights, meta, 0)
    products = as_pull(pull).at(problem, weights, meta, 0)
    generator = torch.Generator().manual_seed(seed)
    v = {k: torch.randn(x.shape, generator=generator).to(x) for k, x in weights.items()}
    value = tensors.norm(v)
    for _ in range(iterations):
        v = tensors.scale(v, 1 / value.clamp_min(torch.finfo(value.dtype).tiny ** 0.5))
        adjoint = Adjoint(v, tensors.zeros_like(state), tensors.zeros_like(meta))
        _, cotangent = through_updates(problem, meta, weights, state, [gradient], adjoint)
        v, _ = products(cotangent)
        value = tensors.norm(v)
    return value


def calibrate_radius(
    problem: InnerProblem,
    meta: Tensors,
    *,
    radii: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    tolerance: float = 0.05,
) -> FiniteDifference:
    """A finite-difference pull whose radius suits this network and precision.

    Compares candidates with the exact pull, along the cotangent that the sweep meets first. Where the network has no
    second derivative (a fused kernel), candidates are compared with their neighbours instead: truncation errors grow
    with the radius and rounding errors fall with it, so two that agree are both right.

    Cost: one pull per radius, and an exact one.

    Args:
        radii: candidates, increasing.
        tolerance: largest relative error of the products that is accepted.

    Raises:
        ValueError: when no candidate is usable, with the error of each and what to do.
    """
    trajectory = unroll(problem, meta)
    problem = replaying(problem, trajectory.draws)
    _, adjoint, _ = outer_adjoint(problem, meta, trajectory)
    step = max(0, problem.num_steps - 1)
    weights, c = trajectory.weights[step], adjoint.weights
    found = {r: _flat(FiniteDifference(r).at(problem, weights, meta, step)(c)) for r in radii}
    try:
        exact = _flat(Reverse().at(problem, weights, meta, step)(c))
        errors = {r: _relative(v, exact) for r, v in found.items()}
    except (RuntimeError, NotImplementedError):
        errors = {r: _relative(found[r], found[s]) for r, s in pairwise(radii)}
    best = min(errors, key=lambda r: errors[r] if math.isfinite(errors[r]) else math.inf)
    if not errors[best] <= tolerance:
        listed = ", ".join(f"{r:g}: {e:.1%}" for r, e in errors.items())
        raise ValueError(
            f"no finite difference is usable here; relative errors by radius: {listed}. Run the inner loss in float32, "
            "or use pull='reverse' (with an attention implementation that has a second derivative); ReLU networks have "
            "kinks that a difference crosses"
        )
    return FiniteDifference(best)


def _flat(products: tuple[Tensors, Tensors]) -> Tensor:
    return torch.cat([v.flatten().double() for group in products for v in group.values()])


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp_min(1e-300))
