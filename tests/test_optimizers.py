"""Inner optimisers against torch and closed forms."""

from __future__ import annotations

import pytest
import torch

from mtl.metagrad.optimizers import InnerAdam, InnerSGD

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
