"""What each of the other estimators claims to equal, against plain autograd and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from estimator_tables import error, plain_gradient, unrolled
from problems import OPTIMIZERS, quadratic, regression

import mtl
from mtl.metagrad import tensors
from mtl.metagrad.estimators import evograd
from mtl.metagrad.estimators.evograd import perturbations
from mtl.metagrad.optimizers import InnerSGD
from mtl.metagrad.trajectory import unroll

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_horizon_mixing_is_autograd_of_the_weighted_sum(decay, options):
    problem, meta = regression(steps=4, **options)
    found = mtl.metagrad.HorizonMixing(decay)(problem, meta).grads
    weights = torch.tensor([decay ** (4 - i) for i in range(1, 5)], dtype=torch.float64)
    expected = tensors.zeros_like(meta)
    for i, c in enumerate(weights / weights.sum(), start=1):
        shorter = unrolled(replace(problem, num_steps=i), meta)
        expected = {k: v + c * shorter[k] for k, v in expected.items()}
    assert error(found, expected) < 1e-10


def test_truncation_mixing_weighs_the_share_of_each_step():
    problem, meta = regression(steps=4, momentum=0.5)
    start = problem.init(meta)
    problem = replace(problem, init=lambda m: start)  # only the steps' shares are weighted
    copies = {f"{k}{step}": v for step in range(4) for k, v in meta.items()}
    at = lambda m, step: {k: m[f"{k}{step}"] for k in meta}  # noqa: E731
    counter = iter(range(4))
    apart = replace(
        problem,
        inner_loss=lambda w, m, step: problem.inner_loss(w, at(m, step), step),
        outer_loss=lambda w, m: problem.outer_loss(w, meta),
        optimizer=InnerSGD(lr=lambda m: m[f"rate{next(counter)}"], momentum=0.5),
    )
    shares = mtl.Exact()(apart, copies).grads
    found = mtl.metagrad.TruncationMixing(0.7)(problem, meta).grads
    for k in ("inner", "both", "rate"):
        expected = sum(0.7 ** (3 - step) * shares[f"{k}{step}"] for step in range(4))
        assert error({k: found[k]}, {k: expected}) < 1e-10


@pytest.mark.parametrize("order", [1, 2, 3])
def test_binomial_is_the_expansion_on_a_quadratic(order):
    problem, meta = quadratic(5, curvature=1.0, lr=0.4)
    hessian, v = _hessian(problem, meta), _outer_gradient(problem, meta)
    carried = lambda steps: sum(  # noqa: E731  (what is left of v after so many steps, to this order)
        math.comb(steps, j) * torch.linalg.matrix_power(-0.4 * hessian, j) @ v.unsqueeze(-1) for j in range(order + 1)
    ).squeeze(-1)
    found = mtl.metagrad.Binomial(order)(problem, meta).grads
    assert error(found, {"start": carried(5), "inner": -0.4 * sum(carried(j) for j in range(5))}) < 1e-10


def test_the_damped_binomial_is_that_of_its_authors_code():
    """Scalar: each factor 1 - alpha h of K = 5, at a product of .302; by hand and with curvature L/K of what it is."""
    factor = 0.302 ** (1 / 5)
    problem = mtl.InnerProblem(
        lambda meta: {"w": meta["start"]},
        lambda w, meta, step: 0.5 * (1 - factor) * w["w"].square().sum(1),
        lambda w, meta: w["w"].sum(1),
        num_steps=5,
        optimizer=InnerSGD(1.0),
    )
    meta = {"start": torch.ones(1, 1, dtype=torch.float64)}
    found = lambda *options: mtl.metagrad.Binomial(*options)(problem, meta).grads["start"].item()  # noqa: E731
    h = 1 - factor
    for order in range(1, 6):
        expected = sum(math.comb(5, j) * (-h * order / 5) ** j for j in range(order + 1))
        assert found(order, "reverse", True) == pytest.approx(expected, rel=1e-12)
    assert found(1, "reverse", True) == pytest.approx(0.788, abs=1e-3)
    assert found(1, "reverse", False) == pytest.approx(-0.064, abs=1e-3)
    assert found(5, "reverse", True) == pytest.approx(0.302, abs=1e-12)


@pytest.mark.parametrize(("steps", "order"), [(20, 3), (7, 1), (7, 6), (4, 4), (3, 5), (1, 1)])
def test_the_cascade_lets_go_of_sums_that_reach_nothing(steps, order):
    problem, meta = quadratic(steps, curvature=1.0, lr=0.1)
    alone = {"start": meta["start"]}
    outside = replace(
        problem, inner_loss=lambda w, m, step: problem.inner_loss(w, {**meta, **m} | {"inner": meta["inner"]}, step)
    )
    result, full = mtl.metagrad.Binomial(order)(outside, alone), mtl.metagrad.Binomial(order)(problem, meta)
    least = min(order, steps)
    assert result.pulls == least * (steps - least + 1) <= full.pulls
    assert error(result.grads, {"start": full.grads["start"]}) < 1e-12


def test_the_cascade_notices_what_acts_in_a_middle_step_only():
    base, meta = quadratic(5, curvature=1.0, lr=0.1)
    own = lambda w, m, step: base.inner_loss(w, m if step == 2 else tensors.detach(meta), step)  # noqa: E731
    problem = replace(base, inner_loss=own)
    exact = mtl.Exact()(problem, meta).grads
    assert exact["inner"].any()
    assert error(mtl.metagrad.Binomial(99)(problem, meta).grads, exact) < 1e-12


def test_neumann_is_its_series_and_tends_to_the_implicit_gradient():
    problem, meta = quadratic(3, curvature=1.0, lr=0.9)
    hessian, v = _hessian(problem, meta), _outer_gradient(problem, meta)
    factor = torch.eye(hessian.shape[-1], dtype=torch.float64) - 0.9 * hessian
    series = 0.9 * sum(torch.linalg.matrix_power(factor, j) for j in range(6)) @ v.unsqueeze(-1)
    assert (
        error({"inner": mtl.metagrad.Neumann(6)(problem, meta).grads["inner"]}, {"inner": -series.squeeze(-1)}) < 1e-10
    )
    implicit = torch.linalg.solve(hessian, v)
    for momentum in (0.0, 0.9):
        rule = InnerSGD(lr=0.9, momentum=momentum)
        result = mtl.metagrad.Neumann(3000)(replace(problem, optimizer=rule), meta)
        v = _outer_gradient(replace(problem, optimizer=rule), meta)
        implicit = torch.linalg.solve(hessian, v)
        assert error({"inner": result.grads["inner"]}, {"inner": -implicit}) < 1e-8
        assert result.diagnostics["residual"] < 1e-8


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_imaml_is_the_gradient_of_the_tied_solution(decay):
    problem, meta = quadratic(2000, curvature=1.0, lr=0.5)
    problem = replace(problem, optimizer=InnerSGD(lr=0.5, weight_decay=decay))
    estimator = mtl.metagrad.ImplicitMAML(strength=0.3, iterations=20, tolerance=1e-12)
    result = estimator(problem, meta)
    tied = replace(
        problem,
        init=lambda m: {"w": m["start"]},
        inner_loss=lambda w, m, k: problem.inner_loss(w, m, k) + 0.15 * ((w["w"] - m["start"]) ** 2).sum(-1),
    )
    assert error(result.grads, mtl.Exact()(tied, meta).grads) < 1e-8
    assert result.pulls <= 8, "six dimensions need six iterations, rounding perhaps one more"
    assert result.diagnostics["residual"] < 1e-10
    adapted = mtl.solve(mtl.metagrad.proximal(problem, meta, 0.3), meta)
    assert torch.allclose(adapted["w"], result.weights["w"])


def test_reptile_is_the_way_gone_pulled_through_the_start():
    problem, meta = quadratic(4, curvature=1.0, lr=0.3)
    scaled = replace(problem, init=lambda m: {"w": 2 * m["start"]})
    gone = 2 * meta["start"] - mtl.solve(scaled, meta)["w"]
    assert error({"start": mtl.metagrad.Reptile()(scaled, meta).grads["start"]}, {"start": 2 * gone / 3}) < 1e-12


def test_imaml_stops_at_negative_curvature():
    problem, meta = quadratic(2, curvature=-1.0, lr=0.1)
    found = mtl.metagrad.ImplicitMAML(strength=0.01)(problem, meta).grads
    assert all(torch.isfinite(v).all() for v in found.values())
    damped = mtl.metagrad.ImplicitMAML(strength=0.01, damping=200.0, iterations=20, tolerance=1e-10)(problem, meta)
    assert damped.diagnostics["residual"] < 1e-9


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("window", [None, 2])
def test_shot_is_autograd_of_its_penalised_outer_loss(window, options):
    problem, meta = regression(steps=5, **options)
    reference = mtl.solve(problem, meta)
    kept = {}

    def coarse(problem, w, meta, step):
        if step % (window or 5) == 0:
            kept["g"] = plain_gradient(problem, w, meta, step)
        return kept["g"]

    def distance(w, meta):
        return sum(0.5 * 0.7 * ((w[k] - v) ** 2).flatten(1).sum(1) for k, v in reference.items())

    penalty = unrolled(replace(problem, outer_loss=distance), meta, coarse)
    expected = tensors.add(unrolled(problem, meta), penalty)
    result = mtl.metagrad.SHOT(penalty=0.7, window=window)(problem, meta)
    assert error(result.grads, expected) < 1e-10
    assert result.diagnostics["gap"] > 0
    assert torch.allclose(result.losses, mtl.Exact()(problem, meta).losses), "the penalty is no part of the losses"


def test_evograd_is_autograd_of_its_own_construction():
    problem, meta = regression(steps=3, momentum=0.5)
    estimator = mtl.metagrad.EvoGrad(copies=4, sigma=0.2, temperature=0.3, noise_seed=5)
    path = unroll(problem, meta)
    noise = perturbations(path.weights[2], path.gradients[2], 4, 5)
    phi = {k: v.clone().requires_grad_() for k, v in meta.items()}
    # The value of the weights before the last step, as if it were the initial weights'.
    initial = problem.init(phi)
    start = {k: v + (path.weights[2][k] - v).detach() for k, v in initial.items()}
    copies = [tensors.add(start, e, 0.2) for e in noise]
    shares = torch.softmax(-torch.stack([problem.inner_loss(c, phi, 2) for c in copies]) / 0.3, 0)
    mixed = {k: sum(tensors.per_task(s, c[k]) * c[k] for c, s in zip(copies, shares, strict=True)) for k in start}
    expected = torch.autograd.grad(problem.outer_loss(mixed, phi).mean(), list(phi.values()), allow_unused=True)
    found = estimator(problem, meta)
    for (k, v), e in zip(found.grads.items(), expected, strict=True):
        assert torch.allclose(v, torch.zeros_like(v) if e is None else e, rtol=1e-9, atol=1e-14), k
    assert torch.equal(found.weights["first"], path.weights[-1]["first"]), "the inner loop is the ordinary one"


def test_evograd_tends_to_the_last_step_of_gradient_descent(monkeypatch):
    """With noise whose covariance is the identity: the weights' own axes, there and back."""
    problem, meta = regression(steps=1)
    like = problem.init(meta)
    size = sum(v[0].numel() for v in like.values())
    axes = torch.eye(size, dtype=torch.float64) * size**0.5
    rows = torch.cat([axes, -axes])
    split = lambda row: dict(zip(like, row.split([v[0].numel() for v in like.values()]), strict=True))  # noqa: E731
    noise = [{k: v.view_as(like[k][0]).expand_as(like[k]) for k, v in split(row).items()} for row in rows]
    monkeypatch.setattr(evograd, "perturbations", lambda *_: noise)
    errors = []
    for sigma in (0.08, 0.04, 0.02):
        step = replace(problem, optimizer=InnerSGD(lr=sigma**2 / 0.5))
        found = mtl.metagrad.EvoGrad(2 * size, sigma, 0.5)(step, meta).grads
        errors.append(error({"inner": found["inner"]}, {"inner": mtl.Exact()(step, meta).grads["inner"]}))
    assert errors[2] < 0.05
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_evograd_draws_anew_where_the_task_is_another_and_only_there():
    problem, meta = regression(steps=2)
    once, again = (mtl.metagrad.EvoGrad()(problem, meta).grads for _ in range(2))
    assert error(once, again) == 0
    assert error(mtl.metagrad.EvoGrad(noise_seed=1)(problem, meta).grads, once) > 0.01
    noise = perturbations(problem.init(meta), unroll(problem, meta).gradients[-1], 2, 0)
    rows = [n["first"][task] for n in noise for task in range(3)]
    assert len({tuple(r.flatten().tolist()) for r in rows}) == 6, "no two copies and no two tasks share their noise"


def _hessian(problem, meta):
    w = tensors.leaf(problem.init(meta))
    columns = [
        mtl.metagrad.Reverse().at(problem, w, meta, 0)({"w": e.expand_as(w["w"])})[0]["w"]
        for e in torch.eye(6).double()
    ]
    return torch.stack(columns, -1)


def _outer_gradient(problem, meta):
    w = tensors.leaf(mtl.solve(problem, meta))
    return tensors.grad(problem.outer_loss(w, meta).mean(), w)[0]["w"]


def test_one_step_is_exact_for_one_step():
    problem, meta = regression(steps=1, momentum=0.5)
    start = problem.init(meta)
    fixed = replace(problem, init=lambda m: start)
    assert error(mtl.metagrad.OneStep()(fixed, meta).grads, mtl.Exact()(fixed, meta).grads) < 1e-10


def test_sama_is_one_step_on_a_quadratic():
    problem, meta = quadratic(3, curvature=1.0, lr=0.4)
    assert (
        error(mtl.metagrad.SAMA(pull="reverse")(problem, meta).grads, mtl.metagrad.OneStep()(problem, meta).grads)
        < 1e-10
    )
