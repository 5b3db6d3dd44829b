"""Meta-gradients of a *solved* inner problem, by the implicit function theorem: Neumann series and iMAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import Adjoint, MetaGradient, Sweep, through_updates
from mtl.metagrad.tensors import Tensors
from mtl.metagrad.trajectory import unroll


@dataclass(frozen=True)
class Neumann(AbstractEstimator):
    r"""Implicit gradient with the inverse Hessian as a series (arXiv 1911.02590).

    .. math:: g = \frac{\partial F}{\partial \phi} - M_K\, x, \qquad
              x = \alpha \sum_{j=0}^{J-1} (I - \alpha H_K)^j \frac{\partial F}{\partial \theta} \approx H_K^{-1}
              \frac{\partial F}{\partial \theta}

    Written as the exact sweep that walks J times over the *last* step, so the optimiser's step sizes, momentum and
    weight decay precondition the series. It describes the solution that the inner loop approaches and presumes that the
    loop came close, to a minimum: the gradient is wrong by what is left of the inner gradient.

    Cost: K gradients, J pulls on one anchor (all but the first cheap); memory of one step.
    Equals: the gradient of the solution when the inner loop has converged and J is large.
    Zero on the initial weights, which the solution has forgotten, and on step sizes. The series diverges where
    ``lr * h_max >= 2`` or the curvature is negative; the diagnostic ``residual`` (what is left of the cotangent, over
    what it was) says how far it came.

    Args:
        terms: J >= 1.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when ``terms`` is not positive.

    Warns:
        StructuralZeroWarning: naming meta-parameters that it cannot train.
    """

    terms: int = 10
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        self._require(self.terms >= 1, "terms", "at least one term; one is the one-step gradient")
        as_pull(self.pull)

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        if problem.num_steps:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"outer", "last"})
            self._back(sweep)
        return sweep.finish(init=False)

    def _back(self, sweep: Sweep) -> None:
        problem, meta, last = sweep.problem, sweep.meta, sweep.trajectory
        weights, state, gradient = last.weights[-1], last.states[-1], last.gradients[-1]
        products = sweep.pull.at(problem, weights, meta, problem.num_steps - 1)
        adjoint, first = sweep.adjoint, tensors.norm(sweep.adjoint.weights)
        for _ in range(self.terms):
            direct, cotangent = through_updates(problem, meta, weights, state, [gradient], adjoint)
            # What the update itself owes to meta is left out: the solution does not depend on how it was reached.
            adjoint = replace(direct, meta=adjoint.meta).with_products(*products(cotangent))
        sweep.adjoint, sweep.pulls = adjoint, self.terms
        residual = tensors.norm(adjoint.weights) / first.clamp_min(torch.finfo(first.dtype).tiny)
        sweep.diagnostics["residual"] = residual.amax()


@dataclass(frozen=True)
class ImplicitMAML(AbstractEstimator):
    r"""iMAML (arXiv 1909.04630): implicit gradient of an inner problem that is tied to its start.

    The inner loss becomes :math:`L + \frac{\lambda}{2} \lVert\theta - \theta_0\rVert^2`, see
    :func:`mtl.metagrad.proximal`. At its solution

    .. math:: \Big(I + \frac{H_K}{\lambda}\Big) x = \frac{\partial F}{\partial \theta}, \qquad
              g = \frac{\partial F}{\partial \phi} + \Big(\frac{\partial \theta_0}{\partial \phi}\Big)^{\!\top} x
              - \frac{1}{\lambda} M_K\, x .

    The system is solved by conjugate gradients, task by task, until the relative residual is below ``tolerance``. A
    task that meets negative curvature, where the system has no such solution, stops there with what it has: raise
    ``strength`` or ``damping``. Weight decay of the inner optimiser counts as curvature.

    Cost: K gradients and at most ``iterations + 1`` pulls on one anchor (all but the first cheap); memory of one step.
    Reads one number from the device per iteration.
    Equals: the gradient of the solution of the tied problem, when both loops have converged. Zero on step sizes.
    Adapting to a new task wants the same tie: ``mtl.solve(mtl.metagrad.proximal(problem, meta, strength), meta)``.

    Args:
        strength: :math:`\lambda > 0`.
        iterations: of conjugate gradients, >= 1.
        tolerance: relative residual at which to stop, >= 0.
        damping: added to the matrix's diagonal, >= 0.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when a number is outside its range.
    """

    strength: float = 1.0
    iterations: int = 10
    tolerance: float = 1e-3
    damping: float = 0.0
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(self.strength > 0, "strength", "a positive number")
        self._require(self.iterations >= 1, "iterations", "at least one")
        self._require(self.tolerance >= 0, "tolerance", "a number >= 0")
        self._require(self.damping >= 0, "damping", "a number >= 0")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        with torch.enable_grad():
            start = problem.init(phi := tensors.leaf(meta))
        reached = tensors.reaches(start.values(), phi)
        start = tensors.detach(start)  # the graph is not needed any more
        trajectory = unroll(_tied(problem, start, self.strength), meta)
        trajectory = replace(trajectory, reached=trajectory.reached | {"init": reached})
        sweep = Sweep(problem, meta, self.pull, trajectory)
        if problem.num_steps:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"init", "outer", "last"})
            self._back(sweep)
        return sweep.finish()

    def _back(self, sweep: Sweep) -> None:
        problem, meta, adjoint = sweep.problem, sweep.meta, sweep.adjoint
        products = sweep.pull.at(problem, sweep.trajectory.weights[-1], meta, problem.num_steps - 1)
        decay = getattr(problem.optimizer, "weight_decay", 0.0) / self.strength
        diagonal = 1 + self.damping + decay
        matrix = lambda p: {k: diagonal * p[k] + h / self.strength for k, h in products(p)[0].items()}  # noqa: E731
        x, used, residual = conjugate_gradients(problem, matrix, adjoint.weights, self.iterations, self.tolerance)
        _, m = products(tensors.scale(x, torch.full_like(sweep.losses, -1 / self.strength)))
        sweep.adjoint = Adjoint(x, {}, tensors.add(adjoint.meta, m))
        sweep.pulls, sweep.diagnostics["residual"] = used + 1, residual


def conjugate_gradients(
    problem: InnerProblem,
    matrix: Callable[[Tensors], Tensors],
    v: Tensors,
    iterations: int,
    tolerance: float,
    precondition: Callable[[Tensors], Tensors] = lambda r: r,
) -> tuple[Tensors, int, Tensor]:
    """Solve ``matrix(x) = v`` for every task at once; one that is done, or meets negative curvature, keeps its answer.

    Args:
        matrix: symmetric, task by task.
        tolerance: relative residual at which a task is done.
        precondition: applies an approximate inverse, symmetric and positive definite.

    Returns:
        The solution, the products that it took, and the largest relative residual.
    """
    x, r, z = tensors.zeros_like(v), dict(v), precondition(v)
    p, rr, rz = z, tensors.dot(r, r), tensors.dot(r, z)
    goal = rr * tolerance**2
    tiny, used = torch.finfo(rr.dtype).tiny, 0
    open_ = rr > tiny
    going = lambda: bool(problem.execution.sync_max((open_ & (rr > goal)).any().float()))  # noqa: E731
    while used < iterations and going():
        ap = matrix(p)
        used += 1
        curvature = tensors.dot(p, ap)
        open_ = open_ & (curvature > 0) & (rr > goal)
        a = torch.where(open_, rz / curvature.clamp_min(tiny), 0.0)
        x, r = tensors.add(x, tensors.scale(p, a)), tensors.add(r, tensors.scale(ap, a), -1.0)
        z = precondition(r)
        new = tensors.dot(r, z)
        p = tensors.add(z, tensors.scale(p, torch.where(open_, new / rz.clamp_min(tiny), 0.0)))
        rr, rz = tensors.dot(r, r), new
    return x, used, (rr / tensors.dot(v, v).clamp_min(tiny)).sqrt().amax()


def proximal(problem: InnerProblem, meta: Tensors, strength: float) -> InnerProblem:
    r"""The inner problem with :math:`\frac{\lambda}{2} \lVert\theta - \theta_0\rVert^2` added to its loss.

    :math:`\theta_0` is what ``meta`` gives, as a constant: no graph leads through it.

    Args:
        strength: :math:`\lambda`.
    """
    return _tied(problem, tensors.detach(problem.init(meta)), strength)


def _tied(problem: InnerProblem, start: Tensors, strength: float) -> InnerProblem:
    """The inner problem tied to weights that are known already."""

    def inner_loss(weights: Tensors, meta: Tensors, step: int, *drawn: Tensors) -> Tensor:
        away = tensors.add(weights, start, -1.0)
        return problem.inner_loss(weights, meta, step, *drawn) + 0.5 * strength * tensors.dot(away, away)

    return replace(problem, init=lambda meta: start, inner_loss=inner_loss)
