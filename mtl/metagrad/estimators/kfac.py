"""Implicit meta-gradients by conjugate gradients that Kronecker factors of linear layers precondition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtl.metagrad import tensors
from mtl.metagrad.estimators.base import AbstractEstimator, warn_of_zeros
from mtl.metagrad.estimators.implicit import conjugate_gradients
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.products import PullChoice, as_pull
from mtl.metagrad.sweep import Adjoint, MetaGradient, Sweep
from mtl.metagrad.tensors import Tensors

Factors = dict[str, tuple[Tensor, Tensor]]
"""Of each linear layer, ``(tasks, rows, rows)`` and ``(tasks, columns, columns)``."""


@dataclass(frozen=True)
class KFAC(AbstractEstimator):
    r"""Implicit gradient with the curvature of linear layers as Kronecker products (arXiv 2603.29108).

    .. math:: g = \frac{\partial F}{\partial \phi} - M_K\, x, \qquad
              H_K\, x = \frac{\partial F}{\partial \theta}, \qquad
              H_K \approx \sum_n s_n s_n^\top \otimes \sum_n a_n a_n^\top

    with :math:`a_n` the inputs of a layer and :math:`s_n` the gradients at its outputs. The product inverts layer by
    layer; it preconditions conjugate gradients on the true :math:`H_K`, which correct what it gets wrong, so its scale
    does not matter then. With ``iterations=0``, the paper's way, it stands for :math:`H_K` by itself and presumes that
    the inner loss is a mean over rows, not yet fitted: these are the gradients of the loss itself (an empirical
    Fisher), which vanish with it.

    A layer is linear where the gradient of its weight is one product of matrices, however the network writes it (and
    under :func:`torch.func.vmap`); rows are examples, or positions of them. Other fast weights (biases, scales,
    convolutions, weights used twice) count as having the average curvature of the layers. A task that meets negative
    curvature stops there with what it has: raise ``damping``.

    Cost: K + 1 gradients, at most ``iterations + 1`` pulls on one anchor (all but the first cheap), and two
    factorisations per layer and task; memory of one step and the factors.
    Equals: :class:`mtl.metagrad.Neumann` with a long series, and the gradient of the solution when the inner loop has
    converged and iterations suffice. Zero on the initial weights and on step sizes.

    Args:
        iterations: of conjugate gradients, >= 0.
        tolerance: relative residual at which to stop, >= 0.
        damping: added to the diagonal of the system, >= 0.
        factor_damping: added to the diagonal of each factor, in units of its mean eigenvalue, > 0.
        pull: ``"reverse"``, ``"forward-over-reverse"`` or ``"finite-difference"``, or an instance of a pull.

    Raises:
        ValueError: when a number is outside its range.

    Warns:
        StructuralZeroWarning: naming meta-parameters that it cannot train.
    """

    iterations: int = 5
    tolerance: float = 1e-3
    damping: float = 0.0
    factor_damping: float = 0.03
    pull: PullChoice = "reverse"

    def __post_init__(self) -> None:
        as_pull(self.pull)
        self._require(self.iterations >= 0, "iterations", "0 (the factors alone) or more")
        self._require(self.tolerance >= 0, "tolerance", "a number >= 0")
        self._require(self.damping >= 0, "damping", "a number >= 0")
        self._require(self.factor_damping > 0, "factor_damping", "a positive number")

    def __call__(self, problem: InnerProblem, meta: Tensors) -> MetaGradient:
        sweep = Sweep(problem, meta, self.pull)
        if problem.num_steps:
            warn_of_zeros(self, problem, meta, sweep.trajectory, follows={"outer", "last"})
            self._back(sweep)
        return sweep.finish(init=False)

    def _back(self, sweep: Sweep) -> None:
        problem, meta, v = sweep.problem, sweep.meta, sweep.adjoint.weights
        weights, last = sweep.trajectory.weights[-1], problem.num_steps - 1
        diagonal = self.damping + problem.optimizer.weight_decay
        inverse = inverse_of(factors(problem, weights, meta, last), v, self.factor_damping, diagonal)
        products = sweep.pull.at(problem, weights, meta, last)
        if self.iterations:
            matrix = lambda p: tensors.add(products(p)[0], p, diagonal)  # noqa: E731
            found = conjugate_gradients(problem, matrix, v, self.iterations, self.tolerance, inverse)
            x, sweep.pulls, sweep.diagnostics["residual"] = found
        else:
            x = inverse(v)
        _, m = products({k: -value for k, value in x.items()})
        sweep.adjoint = Adjoint(x, {}, tensors.add(sweep.adjoint.meta, m))
        sweep.pulls += 1


def factors(problem: InnerProblem, weights: Tensors, meta: Tensors, step: int) -> Factors:
    """The Kronecker factors of the linear layers, read off the products of matrices that a gradient consists of.

    Cost: one gradient.
    """
    weights, meta = tensors.leaf(weights), tensors.leaf(meta, requires_grad=False)
    with torch.enable_grad(), _Recorder(weights) as recorder:
        loss = problem.inner_loss(weights, meta, step).sum()
        tensors.grad(loss, weights)
    found: Factors = {}
    for name, weight in weights.items():
        if len(uses := recorder.uses[name]) == 1 and len(uses[0].gradients) == 1:
            inputs, outputs = (v.reshape(len(weight), -1, v.shape[-1]) for v in (uses[0].inputs, uses[0].gradients[0]))
            a, s = inputs.mT @ inputs, outputs.mT @ outputs
            found[name] = (s, a) if uses[0].rows_are_outputs else (a, s)
    return found


def inverse_of(found: Factors, like: Tensors, factor_damping: float, diagonal: float) -> Callable[[Tensors], Tensors]:
    """An approximate inverse of the curvature: of each layer by its factors, of other weights by the average."""
    traces = [(_mean_eigenvalue(a) * _mean_eigenvalue(b)) for a, b in found.values()]
    tasks = next(iter(like.values()))
    average = torch.stack(traces).mean(0) if traces else tasks.new_ones(len(tasks))
    rest = 1 / (average + diagonal).clamp_min(torch.finfo(average.dtype).tiny ** 0.5)
    solvers = {k: _solver(a, b, factor_damping, diagonal) for k, (a, b) in found.items()}

    def inverse(r: Tensors) -> Tensors:
        return {k: solvers[k](v) if k in solvers else v * tensors.per_task(rest, v) for k, v in r.items()}

    return inverse


def _solver(a: Tensor, b: Tensor, factor_damping: float, diagonal: float) -> Callable[[Tensor], Tensor]:
    """Solves with the damped product of two factors, in their eigenvectors, where the diagonal is added exactly."""
    (p, left), (q, right) = (torch.linalg.eigh(f) for f in (a, b))
    p, q = (e.clamp_min(0) + factor_damping * e.mean(1, keepdim=True) for e in (p, q))
    values = (p[:, :, None] * q[:, None] + diagonal).clamp_min(torch.finfo(p.dtype).tiny ** 0.5)
    return lambda v: left @ ((left.mT @ v @ right) / values) @ right.mT


def _mean_eigenvalue(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=1, dim2=2).mean(1)


@dataclass
class _Use:
    """A product of a layer's inputs, ``(..., n, in)``, and its weight; with the gradients at its outputs."""

    inputs: Tensor
    rows_are_outputs: bool
    gradients: list[Tensor]


class _Recorder(TorchDispatchMode):
    """Recognises a fast weight by its place in memory where it is multiplied on the way forth, and the layer's inputs
    where they are on the way back."""

    def __init__(self, weights: Tensors) -> None:
        super().__init__()
        self.uses: dict[str, list[_Use]] = {k: [] for k in weights}
        self._weights = {v.data_ptr(): (k, v) for k, v in weights.items() if v.dim() == 3}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in _PRODUCTS:
            self._look(*args[-2:])
        return func(*args, **(kwargs or {}))

    def _look(self, left: Tensor, right: Tensor) -> None:
        # x W, or (W^T x^T)^T: bring the second into the form of the first.
        for inputs, factor in ((left, right), (right.mT, left.mT)):
            name, weight = self._weights.get(factor.data_ptr(), ("", None))
            if weight is not None and factor.numel() == weight.numel():
                as_it_is = factor.stride()[-2:] == weight.stride()[-2:] and factor.shape[-2:] == weight.shape[-2:]
                self.uses[name].append(_Use(inputs, not as_it_is, []))
                return
        # a^T s, or s^T a, is the gradient of the weight.
        for inputs, outputs in ((left.mT, right), (right, left.mT)):
            for use in (use for uses in self.uses.values() for use in uses):
                if _same(use.inputs, inputs):
                    use.gradients.append(outputs)
                    return


_PRODUCTS = [getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm")]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
