"""Kronecker factors of linear layers, and conjugate gradients that they precondition, against dense solutions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from estimator_tables import error
from problems import quadratic
from torch import nn

import mtl
from mtl.metagrad import KFAC, Functional, tensors
from mtl.metagrad.estimators.kfac import factors

ROWS, IN = 12, 5
WRITTEN = {
    "rows": ("oi", lambda w, x: x @ w.mT),
    "columns": ("io", lambda w, x: x @ w),
    "einsum": ("oi", lambda w, x: torch.einsum("toi,tni->tno", w, x)),
    "layer": ("oi", None),
}


def layer(written: str, tasks: int, out: int) -> tuple[mtl.InnerProblem, torch.Tensor, torch.Tensor]:
    """Least squares through one linear layer without bias, the columns of its inputs of very different size."""
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # noqa: E731
    x, y = draw(tasks, ROWS, IN) * torch.logspace(-1.5, 1, IN, dtype=torch.float64), 3 * draw(tasks, ROWS, out)
    order, call = WRITTEN[written]
    shape = (tasks, out, IN) if order == "oi" else (tasks, IN, out)
    functional = Functional(nn.Linear(IN, out, bias=False).double())
    predict = (lambda w: call(w["weight"], x)) if call else (lambda w: functional(w, x))

    def inner_loss(weights, meta, step):
        return (0.5 * (predict(weights) - y).square() * meta["inner"].exp()).mean((1, 2)) * out

    return (
        mtl.InnerProblem(
            lambda meta: {"weight": 0.3 * draw(*shape) * meta["start"]},
            inner_loss,
            lambda weights, meta: (predict(weights) - y.flip(1)).square().mean((1, 2)),
            num_steps=1,
            optimizer=mtl.InnerSGD(1e-3),
        ),
        x,
        y,
    )


META = {"inner": torch.zeros(1, dtype=torch.float64), "start": torch.ones(1, dtype=torch.float64)}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("out", [3, IN])
def test_factors_are_the_second_moments_of_inputs_and_of_gradients_at_outputs(written, tasks, out):
    problem, x, y = layer(written, tasks, out)
    weights = tensors.detach(problem.init(META))
    weight = weights["weight"] if WRITTEN[written][0] == "oi" else weights["weight"].mT
    s = (x @ weight.mT - y) / ROWS
    expected = s.mT @ s, x.mT @ x
    found = factors(problem, weights, META, 0)["weight"]
    for value, moment in zip(found, expected if WRITTEN[written][0] == "oi" else expected[::-1], strict=True):
        torch.testing.assert_close(value, moment)


def hessian(problem: mtl.InnerProblem, weights: torch.Tensor) -> torch.Tensor:
    """Dense, ``(tasks, n, n)``."""
    tasks, n = len(weights), weights[0].numel()
    products = mtl.metagrad.Reverse().at(problem, {"weight": weights}, META, 0)
    axes = torch.eye(n, dtype=torch.float64)
    columns = [
        products({"weight": e.view_as(weights[0]).expand_as(weights)})[0]["weight"].reshape(tasks, n) for e in axes
    ]
    return torch.stack(columns, 2)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("written", ["rows", "columns", "layer"])
def test_enough_iterations_are_the_dense_solution(written, damping):
    problem, _, _ = layer(written, 2, 3)
    result = KFAC(iterations=60, tolerance=1e-13, damping=damping)(problem, META)
    weights = result.weights["weight"]
    leaf = {"weight": weights.clone().requires_grad_()}
    (v,) = tensors.grad(problem.outer_loss(leaf, META).mean(), leaf)
    h = hessian(problem, weights)
    system = h + damping * torch.eye(h.shape[-1], dtype=torch.float64)
    x = torch.linalg.solve(system, v["weight"].reshape(2, -1)).view_as(weights)
    _, m = mtl.metagrad.Reverse().at(problem, {"weight": weights}, META, 0)({"weight": -x})
    assert error({"inner": result.grads["inner"]}, {"inner": m["inner"]}) < 1e-8
    assert result.diagnostics["residual"] < 1e-12


def test_the_inputs_of_layers_spare_iterations(monkeypatch):
    """Not their outputs here: the curvature of least squares is the same at all of them, whatever their gradients."""
    problem, _, _ = layer("rows", 2, 3)
    estimator = KFAC(iterations=1, tolerance=0.0, factor_damping=1e-9)
    monkeypatch.setattr("mtl.metagrad.estimators.kfac.factors", lambda *_: {})
    without = estimator(problem, META).diagnostics["residual"]

    def inputs_alone(*arguments):
        s, a = factors(*arguments)["weight"]
        return {"weight": (torch.eye(s.shape[1], dtype=s.dtype).expand_as(s), a)}

    monkeypatch.setattr("mtl.metagrad.estimators.kfac.factors", inputs_alone)
    assert without > 0.1
    assert estimator(problem, META).diagnostics["residual"] < 1e-3, "the curvature is this product"


def test_weight_decay_within_the_loss_hides_no_layer():
    problem, _, _ = layer("rows", 2, 3)
    decayed = lambda w, m, step: problem.inner_loss(w, m, step) + w["weight"].square().sum((1, 2))  # noqa: E731
    weights = problem.init(META)
    found, expected = (factors(p, weights, META, 0) for p in (replace(problem, inner_loss=decayed), problem))
    assert error(dict(enumerate(found["weight"])), dict(enumerate(expected["weight"]))) < 1e-12


def test_without_iterations_the_factors_stand_for_the_curvature():
    problem, x, y = layer("rows", 2, 3)
    result = KFAC(iterations=0, factor_damping=1e-6, damping=0.2)(problem, META)
    weights = result.weights["weight"]
    leaf = {"weight": weights.clone().requires_grad_()}
    (v,) = tensors.grad(problem.outer_loss(leaf, META).mean(), leaf)
    start = tensors.detach(result.weights)
    s = (x @ start["weight"].mT - y) / ROWS
    solved = []
    for task in range(2):
        matrix = torch.kron(s[task].T @ s[task], x[task].T @ x[task]) + 0.2 * torch.eye(3 * IN, dtype=torch.float64)
        solved.append(torch.linalg.solve(matrix, v["weight"][task].flatten()).view_as(weights[0]))
    _, m = mtl.metagrad.Reverse().at(problem, {"weight": weights}, META, 0)({"weight": -torch.stack(solved)})
    assert error({"inner": result.grads["inner"]}, {"inner": m["inner"]}) < 1e-3
    assert (result.pulls, result.gradients) == (1, 1)


def test_without_linear_layers_it_is_the_implicit_gradient_too():
    problem, meta = quadratic(3, curvature=1.0, lr=0.9)
    found = KFAC(iterations=20, tolerance=1e-13)(problem, meta)
    series = mtl.metagrad.Neumann(3000)(problem, meta)
    assert error({"inner": found.grads["inner"]}, {"inner": series.grads["inner"]}) < 1e-8
    decayed = replace(problem, optimizer=mtl.InnerSGD(0.5, weight_decay=0.2))
    found = KFAC(iterations=20, tolerance=1e-13)(decayed, meta)
    series = mtl.metagrad.Neumann(3000)(decayed, meta)
    assert error({"inner": found.grads["inner"]}, {"inner": series.grads["inner"]}) < 1e-8


def test_the_gradient_of_a_layer_that_is_used_twice_is_no_product():
    weights = {"weight": torch.randn(1, 4, 4), "scale": torch.randn(1, 4)}
    x = torch.randn(1, 6, 4)
    twice = lambda w, meta, step: ((x @ w["weight"]).tanh() @ w["weight"] * w["scale"][:, None]).square().mean((1, 2))  # noqa: E731
    problem = mtl.InnerProblem(lambda meta: weights, twice, lambda w, meta: twice(w, meta, 0), 1)
    assert factors(problem, weights, {}, 0) == {}
