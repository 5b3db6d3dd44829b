"""Inner optimisers against torch and closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import OPTIMIZERS, regression

from mtl.metagrad import tensors
from mtl.metagrad.optimizers import InnerAdam, InnerNormalised, InnerSGD, clipped
from mtl.metagrad.trajectory import unroll

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


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


def test_clipping_is_that_of_torch_for_each_task():
    gradient = {"a": torch.randn(3, 4, 2), "b": torch.randn(3, 5)}
    gradient = {k: v * torch.tensor([0.01, 1.0, 100.0]).view(-1, *[1] * (v.dim() - 1)) for k, v in gradient.items()}
    found = clipped(gradient, 1.5)
    for task in range(3):
        parameters = [torch.zeros_like(v[task]) for v in gradient.values()]
        for parameter, v in zip(parameters, gradient.values(), strict=True):
            parameter.grad = v[task].clone()
        torch.nn.utils.clip_grad_norm_(parameters, 1.5)
        for parameter, v in zip(parameters, found.values(), strict=True):
            torch.testing.assert_close(v[task], parameter.grad, rtol=1e-5, atol=0)
    assert torch.equal(found["a"][0], gradient["a"][0]), "below the limit not a bit changes"
    assert torch.allclose(tensors.norm(found)[1:], torch.tensor(1.5))
    halves = clipped({"w": torch.full((1, 70000), 100.0, dtype=torch.float16)}, 1.0)["w"]
    assert halves.dtype == torch.float16
    assert halves.float().norm() == pytest.approx(1.0, rel=1e-2), "whose square overflows float16"


def test_adam_goes_on_where_an_earlier_loop_of_torch_ended():
    w = torch.randn(2, 3, dtype=torch.float64)
    theirs = w.clone().requires_grad_()
    optimizer, options = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9)), {"lr": 0.1, "betas": (0.8, 0.9)}

    def step(i: int) -> None:
        theirs.grad = torch.sin(theirs.detach() * (i + 1))
        optimizer.step()

    for i in range(3):
        step(i)
    kept = optimizer.state[theirs]
    kept = {"step": kept["step"].clone(), "m.w": kept["exp_avg"].clone(), "v.w": kept["exp_avg_sq"].clone()}
    ours, adam = {"w": theirs.detach().clone()}, InnerAdam(start=lambda meta: kept, **options)
    state = adam.init(ours)
    for i in range(3, 6):
        step(i)
        ours, state = adam.update(ours, state, {"w": torch.sin(ours["w"] * (i + 1))}, {})
    assert torch.allclose(ours["w"], theirs, rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adam, warm"])
def test_a_loop_in_two_parts_is_the_whole(name):
    whole, meta = regression(6, **OPTIMIZERS[name])
    first = unroll(replace(whole, num_steps=2), meta)
    rest = InnerAdam(lambda m: m["rate"], (0.8, 0.9), 1e-3, start=lambda meta: first.states[-1])
    second = replace(whole, init=lambda meta: first.weights[-1], num_steps=4, optimizer=rest)
    expected, found = unroll(whole, meta).weights[-1], unroll(second, meta).weights[-1]
    assert all(torch.allclose(v, found[k], rtol=1e-12) for k, v in expected.items())


def test_settled_averages_are_not_corrected():
    adam = InnerAdam(lr=1.0, betas=(0.9, 0.99), start=lambda m: {"m.w": torch.tensor(2.0), "v.w": torch.tensor(9.0)})
    weights, state = {"w": torch.zeros(1, 1)}, adam.init({"w": torch.zeros(1, 1)})
    for expected in (-2 * 0.9 / (9 * 0.99) ** 0.5, -2 * 0.81 / (9 * 0.99**2) ** 0.5):
        moved, state = adam.update(weights, state, {"w": torch.zeros(1, 1)}, {})
        assert moved["w"].item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"returned no 'm\.b': expected m\.<name> and v\.<name>"):
        adam.update({"b": weights["w"]}, adam.init({"b": weights["w"]}), {"b": torch.zeros(1, 1)}, {})


@pytest.mark.parametrize("relative", [False, True])
def test_normalised_steps_have_the_length_they_are_given(relative):
    rule = InnerNormalised(lr=0.1, relative=relative)
    weights = {"a": torch.randn(3, 4, 2), "b": torch.randn(3, 5), "zero": torch.zeros(3, 2)}
    gradient = {k: 10.0 ** (3 * i - 3) * torch.randn_like(v) for i, (k, v) in enumerate(weights.items())}
    moved, _ = rule.update(weights, {}, gradient, {})
    for k, w in weights.items():
        step = (moved[k] - w).flatten(1)
        long = w.flatten(1).norm(dim=1) if relative and k != "zero" else torch.ones(3)
        assert torch.allclose(step.norm(dim=1), 0.1 * long, rtol=1e-4), k
        assert torch.allclose(torch.cosine_similarity(step, -gradient[k].flatten(1)), torch.ones(3)), k
    scaled, _ = rule.update(weights, {}, {k: 7 * g for k, g in gradient.items()}, {})
    assert all(torch.allclose(moved[k], scaled[k], atol=1e-6) for k in weights)


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_tasks_of_a_batch_move_as_each_alone(options):
    problem, meta = regression(**options)
    rule = problem.optimizer
    state, weights = rule.init(problem.init(meta)), problem.init(meta)
    gradient = {
        k: torch.randn_like(v) * torch.tensor([0.1, 1.0, 9.0]).view(-1, *[1] * (v.dim() - 1))
        for k, v in weights.items()
    }
    together, _ = rule.update(weights, state, gradient, meta)
    for task in range(3):
        row = lambda group, task=task: {k: v[task : task + 1] if v.dim() > 1 else v for k, v in group.items()}  # noqa: E731
        alone, _ = rule.update(row(weights), row(state), row(gradient), row(meta))
        assert all(torch.allclose(v, together[k][task : task + 1], rtol=1e-12) for k, v in alone.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_dtypes_stay(options, dtype):
    problem, meta = regression(**options)
    meta = {k: v.to(dtype) for k, v in meta.items()}
    weights = {k: v.to(dtype) for k, v in problem.init(meta).items()}
    state = problem.optimizer.init(weights)
    moved, new = problem.optimizer.update(weights, state, weights, meta)
    assert all(v.dtype == dtype and torch.isfinite(v).all() for v in moved.values())
    assert {k: v.dtype for k, v in new.items()} == {k: v.dtype for k, v in state.items()}
