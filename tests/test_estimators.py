"""Algorithms x laws. A new estimator adds a row to the tables at the top; every law then applies to it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from problems import OPTIMIZERS, quadratic, regression

import mtl
from mtl.metagrad import tensors
from mtl.metagrad.estimators import evograd
from mtl.metagrad.estimators.evograd import perturbations
from mtl.metagrad.optimizers import InnerAdam, InnerSGD
from mtl.metagrad.problem import InnerProblem, unroll

# Estimators that equal the exact gradient, whatever the problem.
EXACT = {
    "rematerialised": mtl.Rematerialised(),
    "rematerialised, forward": mtl.Rematerialised("forward-over-reverse"),
    "rematerialised, all kept": mtl.Rematerialised(budget=math.inf),
    "rematerialised, some kept": mtl.Rematerialised(budget=0.014),
    "truncated(K)": mtl.metagrad.Truncated(last_steps=99),
    "binomial(K)": mtl.metagrad.Binomial(order=99),
    "shot(0)": mtl.metagrad.SHOT(penalty=0.0),
    "shot, no gap": mtl.metagrad.SHOT(window=1),
    "horizon mixing(0)": mtl.metagrad.HorizonMixing(decay=0.0),
    "truncation mixing(1)": mtl.metagrad.TruncationMixing(decay=1.0),
    "adaptive(1)": mtl.Windowed(window=1),
    "adaptive(3), single steps": mtl.Windowed(window=3, tau=1e-9),
    "exact-forward(1)": mtl.Windowed(window=1, mode="exact-forward"),
    "lazy(1)": mtl.Windowed(window=1, mode="lazy"),
}
# Estimators that are approximate, each with the gradients and pulls it needs for K = 7 inner steps, and the
# meta-parameters that it cannot train (type I: start, L: inner, D: outer, O: rate, I and L: both).
APPROXIMATE = {
    "first-order": (mtl.FirstOrder(), 7, 0, {"inner"}),
    "truncated(3)": (mtl.metagrad.Truncated(last_steps=3), 7, 3, set()),
    "binomial(0)": (mtl.metagrad.Binomial(order=0), 7, 0, {"inner"}),
    "binomial(1)": (mtl.metagrad.Binomial(order=1), 7, 7 + 6, set()),
    "binomial(2)": (mtl.metagrad.Binomial(order=2), 7, 7 + 6 + 5, set()),
    "truncation mixing": (mtl.metagrad.TruncationMixing(), 7, 7, set()),
    "lazy(3)": (mtl.Windowed(window=3, mode="lazy"), 3, 3, set()),
    "exact-forward(3)": (mtl.Windowed(window=3, mode="exact-forward"), 7, 3, set()),
    "exact-forward(3), start": (mtl.Windowed(window=3, mode="exact-forward", anchor="start"), 7, 3, set()),
    "exact-forward(3), end": (mtl.Windowed(window=3, mode="exact-forward", anchor="end"), 7, 3, set()),
    "substepped(3)": (mtl.Windowed(window=3, mode="exact-forward", substeps=3), 7, 7, set()),
    "adaptive(3)": (mtl.Windowed(window=3), 7, 3, set()),
}
# Estimators of something else: of other horizons, of the solution that the inner loop approaches, of no loss at all.
OTHER = {
    "horizon mixing": (mtl.metagrad.HorizonMixing(), 7, 7, set()),
    "reptile": (mtl.metagrad.Reptile(), 7, 0, {"inner", "outer", "rate"}),
    "neumann(4)": (mtl.metagrad.Neumann(terms=4), 7, 4, {"start", "rate"}),
    "imaml(2)": (mtl.metagrad.ImplicitMAML(iterations=2, tolerance=0), 7, 3, {"rate"}),
    "one-step": (mtl.metagrad.OneStep(), 7, 1, {"start"}),
    "sama": (mtl.metagrad.SAMA(), 7, 1, {"start"}),
    "sama, reverse": (mtl.metagrad.SAMA(pull="reverse"), 7, 1, {"start"}),
    "evograd": (mtl.metagrad.EvoGrad(copies=3), 7 + 3, 0, {"rate"}),
    "shot": (mtl.metagrad.SHOT(), 7 + 1, 7 + 1, set()),
    "shot(3)": (mtl.metagrad.SHOT(window=3), 7 + 3, 7 + 3, set()),
}
INEXACT = APPROXIMATE | OTHER
NEAR = EXACT | {k: v[0] for k, v in APPROXIMATE.items()}
ALL = NEAR | {k: v[0] for k, v in OTHER.items()}

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


def error(found: dict, expected: dict) -> float:
    """Largest difference, relative to the largest entry of the expected tensor."""
    return max(
        ((found[k] - v).abs().max() / v.abs().max().clamp_min(1e-300)).item()
        if v.abs().max()
        else found[k].abs().max().item()
        for k, v in expected.items()
    )


def cosine(found: dict, expected: dict, key: str) -> float:
    return torch.cosine_similarity(found[key].flatten(), expected[key].flatten(), dim=0).item()


def unrolled(problem: InnerProblem, meta: dict, gradient_of=None) -> dict:
    """The reference, written as plainly as possible and sharing no code with the library's sweep."""
    meta = {k: v.clone().requires_grad_() for k, v in meta.items()}
    w = {k: v.clone() for k, v in problem.init(meta).items()}
    w = {k: v if v.requires_grad else v.requires_grad_() for k, v in w.items()}
    buffer, square = ({k: torch.zeros_like(v) for k, v in w.items()} for _ in range(2))
    rule = problem.optimizer
    lr = rule.lr(meta) if callable(rule.lr) else rule.lr
    for step in range(problem.num_steps):
        gradient = (gradient_of or _gradient)(problem, w, meta, step)
        for k in w:
            if isinstance(rule, InnerAdam):
                (b1, b2), t = rule.betas, step + 1
                buffer[k] = b1 * buffer[k] + (1 - b1) * gradient[k]
                square[k] = b2 * square[k] + (1 - b2) * gradient[k] ** 2
                root = (square[k] / (1 - b2**t) + 1e-300).sqrt()
                w[k] = w[k] - lr * buffer[k] / (1 - b1**t) / (root + rule.eps)
            else:
                buffer[k] = rule.momentum * buffer[k] + gradient[k] + rule.weight_decay * w[k]
                w[k] = w[k] - lr * buffer[k]
    loss = problem.outer_loss(w, meta).mean()
    found = torch.autograd.grad(loss, list(meta.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(meta.items(), found, strict=True)}


def _gradient(problem, w, meta, step):
    loss = problem.inner_loss(w, meta, step).sum()
    found = torch.autograd.grad(loss, list(w.values()), create_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(w.items(), found, strict=True)}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("fixed_batch", [True, False])
def test_exact_is_autograd_of_the_unrolled_loop(options, fixed_batch):
    problem, meta = regression(fixed_batch=fixed_batch, **options)
    assert error(mtl.Exact()(problem, meta).grads, unrolled(problem, meta)) < 1e-10


def test_exact_is_the_central_difference_of_the_outer_loss():
    problem, meta = regression(momentum=0.5)
    grads = mtl.Exact()(problem, meta).grads
    h = 1e-6
    for key, value in meta.items():
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        plus, minus = (mtl.FirstOrder()(problem, meta | {key: value + s * h * direction}).loss for s in (1, -1))
        assert torch.isclose((grads[key] * direction).sum(), (plus - minus) / (2 * h), rtol=1e-6, atol=1e-9), key


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
def test_equals_exact(estimator, options):
    problem, meta = regression(fixed_batch=False, **options)
    result, reference = estimator(problem, meta), mtl.Exact()(problem, meta)
    assert error(result.grads, reference.grads) < 1e-10
    assert error(result.weights, reference.weights) < 1e-12
    assert torch.allclose(result.losses, reference.losses)


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_first_order_is_autograd_with_constant_gradients(options):
    problem, meta = regression(**options)
    constant = lambda *a: {k: v.detach() for k, v in _gradient(*a).items()}  # noqa: E731
    assert error(mtl.FirstOrder()(problem, meta).grads, unrolled(problem, meta, constant)) < 1e-10


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", [2, 3, 6, 10])
def test_lazy_is_autograd_of_its_own_coarse_loop(size, options):
    problem, meta = regression(steps=7, **options)
    kept = {}

    def reuse(problem, w, meta, step):
        if step % size == 0:
            kept["g"] = _gradient(problem, w, meta, step)
        return kept["g"]

    assert error(mtl.Windowed(window=size, mode="lazy")(problem, meta).grads, unrolled(problem, meta, reuse)) < 1e-10


def test_lazy_with_plain_sgd_is_maml_with_fewer_larger_steps():
    problem, meta = regression(steps=6)
    coarse = replace(problem, num_steps=2, optimizer=InnerSGD(lr=lambda m: 3 * m["rate"]))
    assert error(mtl.Windowed(window=3, mode="lazy")(problem, meta).grads, mtl.Exact()(coarse, meta).grads) < 1e-10


def test_momentum_window_has_its_closed_form():
    # Constant gradient g over w steps from buffer v: theta -= lr (d_w v + c_w g).
    mu, w, lr = 0.9, 5, 0.1
    sgd = InnerSGD(lr=lr, momentum=mu)
    g, v = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[-3.0]], dtype=torch.float64)
    weights, state = {"w": torch.zeros(1, 1, dtype=torch.float64)}, {"w": v}
    for _ in range(w):
        weights, state = sgd.update(weights, state, {"w": g}, {})
    c_w, d_w = sum((1 - mu**i) / (1 - mu) for i in range(1, w + 1)), mu * (1 - mu**w) / (1 - mu)
    assert c_w == pytest.approx(13.1, abs=0.05)
    assert torch.allclose(weights["w"], -lr * (d_w * v + c_w * g))
    assert torch.allclose(state["w"], mu**w * v + (1 - mu**w) / (1 - mu) * g)


@pytest.mark.parametrize("anchor", ["start", "middle", "end"])
def test_window_is_its_straight_through_form(anchor):
    problem, meta = regression(steps=8)
    size, meta = 3, {k: v.clone().requires_grad_() for k, v in meta.items()}
    lr = meta["rate"].detach()
    w = {k: v.clone() for k, v in problem.init(meta).items()}
    w = {k: v if v.requires_grad else v.requires_grad_() for k, v in w.items()}
    for start in range(0, problem.num_steps, size):
        n = min(size, problem.num_steps - start)
        at = start + {"start": 0, "middle": n // 2, "end": n - 1}[anchor]
        x = {k: v.detach().requires_grad_() for k, v in w.items()}
        path = [x]
        for step in range(start, start + n):
            g = _gradient(problem, path[-1], meta, step)
            path.append({k: (v - lr * g[k]).detach().requires_grad_() for k, v in path[-1].items()})
        middle, end = path[at - start], path[-1]
        shifted = {k: v + (middle[k] - v).detach() for k, v in w.items()}
        g = _gradient(problem, shifted, meta, at)
        w = {k: (s := v - n * lr * g[k]) + (end[k] - s).detach() for k, v in w.items()}
    keys = ["start", "both", "inner", "outer"]
    expected = torch.autograd.grad(problem.outer_loss(w, meta).mean(), [meta[k] for k in keys])
    found = mtl.Windowed(window=size, mode="exact-forward", anchor=anchor)(problem, meta).grads
    assert error({k: found[k] for k in keys}, dict(zip(keys, expected, strict=True))) < 1e-10


def test_substepping_every_step_is_exact_on_a_quadratic():
    problem, meta = quadratic(12, curvature=3.0, lr=0.3)
    estimator = mtl.Windowed(window=4, mode="exact-forward", substeps=4)
    assert error(estimator(problem, meta).grads, mtl.Exact()(problem, meta).grads) < 1e-10


def test_adaptive_survives_the_cliff_where_a_plain_window_falls():
    problem, meta = quadratic(12, curvature=1.0, lr=0.75)  # size * lr * h_max = 3
    exact = mtl.Exact()(problem, meta).grads
    plain = mtl.Windowed(window=4, mode="exact-forward")(problem, meta)
    adaptive = mtl.Windowed(window=4)(problem, meta)
    for key in exact:
        assert cosine(adaptive.grads, exact, key) > 0.95
    assert min(cosine(plain.grads, exact, k) for k in exact) < 0.9
    assert plain.diagnostics["max_rho"] > 0.5, "the diagnostic says why"


def test_adaptive_costs_nothing_where_curvature_is_low():
    problem, meta = quadratic(20, curvature=1.0, lr=0.01)
    result = mtl.Windowed(window=5)(problem, meta)
    assert result.pulls == 4
    assert cosine(result.grads, mtl.Exact()(problem, meta).grads, "start") > 0.999


def test_middle_anchor_is_best():
    problem, meta = regression(steps=12, lr=0.05)
    exact = mtl.Exact()(problem, meta).grads
    errors = {
        a: error(mtl.Windowed(window=3, mode="exact-forward", anchor=a)(problem, meta).grads, exact)
        for a in ("start", "middle", "end")
    }
    assert errors["middle"] < min(errors["start"], errors["end"])


def test_window_error_shrinks_with_the_step_size():
    # At fixed K the relative error is first order in the step size: what a window leaves out is how the cotangent
    # changes inside it.
    def at(lr):
        problem, meta = regression(steps=6, lr=lr)
        return error(
            mtl.Windowed(window=3, mode="exact-forward")(problem, meta).grads, mtl.Exact()(problem, meta).grads
        )

    assert at(0.002) / at(0.001) == pytest.approx(2, rel=0.1)


def test_finite_difference_error_falls_with_the_square_of_the_radius():
    problem, meta = regression(momentum=0.5)
    exact = mtl.Exact()(problem, meta).grads
    errors = [
        error(mtl.Rematerialised(pull=mtl.metagrad.FiniteDifference(radius=r))(problem, meta).grads, exact)
        for r in (4e-2, 2e-2, 1e-2)
    ]
    assert errors[2] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("estimator", "zero"), [(e, z) for e, _, _, z in INEXACT.values()], ids=INEXACT)
def test_structural_zeros_are_exact_and_announced(estimator, zero, steps):
    problem, meta = regression(steps=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        grads = estimator(problem, meta).grads
    assert {k for k, g in grads.items() if not torch.count_nonzero(g)} == zero
    told = [str(w.message) for w in caught if w.category is mtl.metagrad.StructuralZeroWarning]
    assert all(any(repr(k) in message for message in told) for k in zero)
    assert all("Windowed, Truncated or Rematerialised" in message for message in told)
    assert len(told) <= len(zero), "nothing that it trains is called untrained"


def test_first_order_says_where_the_meta_parameter_acts():
    with pytest.warns(
        mtl.metagrad.StructuralZeroWarning, match=r"\['inner'\]: they act only inside the inner loss.*Windowed"
    ):
        mtl.FirstOrder()(*regression())


def test_first_order_is_silent_when_nothing_is_lost():
    problem, meta = regression()
    problem = replace(problem, outer_loss=lambda w, m: (w["first"] ** 2).sum((1, 2)) * m["inner"].mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtl.FirstOrder()(problem, meta)


def counting(problem: InnerProblem) -> tuple[InnerProblem, list[int]]:
    """The problem, and the steps at which its inner loss was evaluated."""
    calls: list[int] = []

    def counted(weights, meta, step):
        calls.append(step)
        return problem.inner_loss(weights, meta, step)

    return replace(problem, inner_loss=counted), calls


@pytest.mark.parametrize(("name", "estimator", "gradients", "pulls"), [(k, *v[:3]) for k, v in INEXACT.items()])
def test_counts(name, estimator, gradients, pulls):
    problem, meta = regression(steps=7, lr=0.01)
    counted, calls = counting(problem)
    result = estimator(counted, meta)
    assert (result.gradients, result.pulls) == (gradients, pulls)
    shared = {"substepped(3)": 3, "binomial(1)": 7, "binomial(2)": 7, "neumann(4)": 1, "imaml(2)": 1, "sama": 2}
    shared["evograd"] = 3  # forward passes of the copies
    assert len(calls) == gradients + shared.get(name, pulls), "pulls at one anchor share its graph"


def test_every_registered_estimator_is_held_to_the_laws():
    tested = {type(e) for e in ALL.values()} | {mtl.Exact}  # exact is what the others are compared with
    assert set(mtl.metagrad.ESTIMATORS.values()) == tested


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
            kept["g"] = _gradient(problem, w, meta, step)
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


def test_the_jacobian_of_adam_has_its_closed_form():
    g, m, v = (torch.rand(1, 5, dtype=torch.float64) + 0.1 for _ in range(3))
    adam, (b1, b2), t = InnerAdam(lr=0.1, betas=(0.9, 0.99), eps=1e-14), (0.9, 0.99), 4
    state = {"step": torch.tensor(t - 1.0, dtype=torch.float64), "m.w": m, "v.w": v}
    g.requires_grad_()
    moved, new = adam.update({"w": torch.zeros(1, 5, dtype=torch.float64)}, state, {"w": g}, {})
    (found,) = torch.autograd.grad(moved["w"].sum(), g)
    corrected = 0.1 * (1 - b2**t) ** 0.5 / (1 - b1**t)
    expected = -corrected * ((1 - b1) * b2 * v - b1 * (1 - b2) * g * m) / new["v.w"] ** 1.5
    assert torch.allclose(found, expected, rtol=1e-10)


def test_inner_adam_is_torch_adam():
    w = torch.randn(2, 3, dtype=torch.float64)
    theirs, ours = w.clone().requires_grad_(), {"w": w}
    optimizer, adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9)), InnerAdam(lr=0.1, betas=(0.8, 0.9))
    state = adam.init(ours)
    for i in range(4):
        theirs.grad = torch.sin(theirs.detach() * (i + 1))
        ours, state = adam.update(ours, state, {"w": torch.sin(ours["w"] * (i + 1))}, {})
        optimizer.step()
    assert torch.allclose(ours["w"], theirs, rtol=1e-12)


def test_a_budget_keeps_as_many_steps_as_fit():
    problem, meta = regression(steps=7)
    counted, calls = counting(problem)
    evaluations = {}
    for budget in (0.0, 1e-6, 0.014, 1e3):
        calls.clear()
        mtl.Rematerialised(budget=budget)(counted, meta)
        evaluations[budget] = len(calls)
    assert evaluations[0.0] == evaluations[1e-6] == 14, "no room: every step once more on the way back"
    assert 7 < evaluations[0.014] < 14
    assert evaluations[1e3] == 7, "room for all: nothing is evaluated twice"


@pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_any_number_of_steps_is_defined(estimator, steps):
    problem, meta = regression(steps=steps, lr=0.01)
    result, exact = estimator(problem, meta), mtl.Exact()(problem, meta)
    assert all(torch.isfinite(g).all() for g in result.grads.values())
    assert result.grads.keys() == meta.keys()
    assert all(result.grads[k].shape == v.shape for k, v in meta.items())
    assert not any(g.requires_grad for g in result.grads.values())
    if steps == 0 and not isinstance(estimator, mtl.metagrad.Reptile):
        assert error(result.grads, exact.grads) < 1e-12
    if estimator in NEAR.values():
        assert cosine(result.grads, exact.grads, "start") > 0.95, "close to exact at a small step size"


# Their direction is not of the outer loss alone.
MORE_THAN_THE_OUTER_LOSS = (mtl.metagrad.Reptile, mtl.metagrad.SHOT)


@pytest.mark.parametrize("estimator", [e for e in ALL.values() if not isinstance(e, MORE_THAN_THE_OUTER_LOSS)])
def test_tasks_are_independent(estimator):
    # A batch of tasks gives what each gives alone: per-task cotangents divided by their number, shared ones averaged.
    if estimator in (ALL["adaptive(3)"],):
        estimator = replace(
            estimator, tau=0.99
        )  # sub-steps are chosen for the worst task of a batch; keep one per window
    problem, meta = regression(lr=0.01)
    joint = estimator(problem, meta).grads
    for task in range(3):

        def only(losses, task=task):
            return losses[task : task + 1]

        alone = replace(problem, outer_loss=lambda w, m, only=only: only(problem.outer_loss(w, m)))
        grads = estimator(alone, meta).grads
        others = [t for t in range(3) if t != task]
        for k in ("start", "both"):
            assert torch.allclose(grads[k][task] / 3, joint[k][task], rtol=1e-9, atol=1e-15)
            assert torch.count_nonzero(grads[k][others]) == 0


@pytest.mark.parametrize(
    "estimator", [mtl.Rematerialised(), mtl.Windowed(window=2), mtl.metagrad.Truncated(last_steps=2)]
)
def test_call_leaves_no_trace(estimator):
    problem, meta = regression(steps=3)
    meta = {k: v.requires_grad_() for k, v in meta.items()}
    estimator(problem, meta)
    assert all(v.grad is None and v.is_leaf for v in meta.values())


def test_memory_is_flat_in_the_number_of_steps():
    """Bytes of activations saved for backward and alive at once, counted as they are saved, not guessed."""
    from torch.autograd.graph import saved_tensors_hooks

    class Token:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # an attached output would close a cycle with its own graph
            Token.alive += tensor.nbytes
            Token.peak = max(Token.peak, Token.alive)

        def __del__(self):
            Token.alive -= self.tensor.nbytes

    def peak(estimator, steps):
        problem, meta = regression(steps=steps)
        Token.alive = Token.peak = 0
        with saved_tensors_hooks(Token, lambda token: token.tensor):
            estimator(problem, meta)
        return Token.peak

    for estimator in (
        mtl.Rematerialised(),
        mtl.Windowed(window=2, mode="exact-forward"),
        mtl.metagrad.Truncated(last_steps=5),
    ):
        assert peak(estimator, 16) == peak(estimator, 4)
        assert peak(estimator, 16) < 1.1 * peak(mtl.Rematerialised(), 1), "one step's graph is alive"
    assert peak(mtl.Exact(), 16) > 3 * peak(mtl.Exact(), 4), "the measure can see growth"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mtl.Windowed(window=0), "window=1 is the exact gradient"),
        (lambda: mtl.Windowed(mode="eager"), "expected 'adaptive'"),
        (lambda: mtl.Windowed(anchor="centre"), "expected 'start'"),
        (lambda: mtl.Windowed(pull="forward"), "finite-difference"),
        (lambda: mtl.Windowed(substeps=2), "only mode='exact-forward'"),
        (lambda: mtl.metagrad.Truncated(last_steps=0), "FirstOrder"),
        (lambda: mtl.Rematerialised(pull="x"), "reverse"),
        (lambda: mtl.Rematerialised(budget=-1), "MiB >= 0"),
        (lambda: mtl.Rematerialised("finite-difference", budget=1), "no graph|graph to keep"),
        (lambda: mtl.metagrad.Binomial(order=-1), "first-order"),
        (lambda: mtl.metagrad.HorizonMixing(decay=2), "decay=2"),
        (lambda: mtl.metagrad.TruncationMixing(decay=-1), "decay=-1"),
        (lambda: mtl.metagrad.Neumann(terms=0), "at least one term"),
        (lambda: mtl.metagrad.ImplicitMAML(strength=0), "positive"),
        (lambda: mtl.metagrad.ImplicitMAML(iterations=0), "at least one"),
        (lambda: mtl.metagrad.ImplicitMAML(damping=-1), "damping=-1"),
        (lambda: mtl.metagrad.OneStep(pull="x"), "reverse"),
        (lambda: mtl.metagrad.EvoGrad(copies=1), "copies=1"),
        (lambda: mtl.metagrad.EvoGrad(sigma=0), "positive"),
        (lambda: mtl.metagrad.EvoGrad(temperature=-1), "positive"),
        (lambda: mtl.metagrad.SHOT(penalty=-1), "penalty=-1"),
        (lambda: mtl.metagrad.SHOT(window=0), "window=0"),
        (lambda: mtl.metagrad.SHOT(pull="x"), "reverse"),
        (lambda: InnerAdam(lr=0), "positive"),
        (lambda: InnerAdam(betas=(1.0, 0.9)), "betas"),
        (lambda: InnerAdam(eps=0), "eps"),
        (lambda: mtl.metagrad.FiniteDifference(radius=0), "positive"),
        (lambda: InnerSGD(lr=0.0), "positive"),
        (lambda: InnerSGD(momentum=1.0), "momentum"),
        (lambda: InnerSGD(weight_decay=-1), "weight_decay"),
        (lambda: replace(regression()[0], num_steps=-1), "num_steps"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_kernel_without_second_derivative_is_named():
    def inner_loss(weights, meta, step):
        q = weights["q"][:, None] + torch.zeros(1, 1, 2, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).sum((1, 2, 3))

    problem = InnerProblem(lambda m: {"q": m["q"]}, inner_loss, lambda w, m: w["q"].sum((1, 2)), 1, InnerSGD(lr=0.1))
    meta = {"q": torch.randn(2, 2, 4)}
    reverse = mtl.Rematerialised()(problem, meta).grads["q"]  # the pull picks the kernel that has one
    difference = mtl.Rematerialised(pull="finite-difference")(problem, meta).grads["q"]
    assert torch.allclose(reverse, difference, atol=1e-3)


def test_pull_products_are_symmetric():
    # H is symmetric: <a, H b> = <H a, b>; both pulls must say so.
    problem, meta = regression()
    w = tensors.detach(problem.init(meta))
    a, b = ({k: torch.randn_like(v) for k, v in w.items()} for _ in range(2))
    for pull in (mtl.metagrad.Reverse(), mtl.metagrad.ForwardOverReverse(), mtl.metagrad.FiniteDifference(radius=1e-3)):
        products = pull.at(problem, w, meta, 0)
        assert torch.allclose(tensors.dot(a, products(b)[0]), tensors.dot(products(a)[0], b), rtol=1e-4)
