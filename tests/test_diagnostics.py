"""Diagnostics: against closed forms, and where they must refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from problems import quadratic, regression

import mtl


def test_curvature_is_the_largest_eigenvalue_times_the_step_size():
    problem, meta = quadratic(1, curvature=3.0, lr=0.2)
    found = mtl.metagrad.curvature(problem, meta, iterations=60)
    assert torch.allclose(found, torch.full((3,), 0.6, dtype=torch.float64), rtol=1e-6)


def test_curvature_counts_step_sizes_as_they_are_used():
    problem, meta = quadratic(1, curvature=3.0, lr=0.2)
    halves = replace(problem, optimizer=mtl.InnerSGD(lr=lambda m: {"w": torch.tensor([[0.1]] * 3).double()}))
    found = mtl.metagrad.curvature(halves, meta, iterations=60)
    assert torch.allclose(found, torch.full((3,), 0.3, dtype=torch.float64), rtol=1e-6)


def test_curvature_is_of_gradient_descent():
    problem, meta = quadratic(1, curvature=3.0, lr=0.2)
    with pytest.raises(ValueError, match=r"InnerAdam.*InnerSGD"):
        mtl.metagrad.curvature(replace(problem, optimizer=mtl.InnerAdam()), meta)


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
def test_self_check_sees_what_an_estimator_leaves_out():
    problem, meta = regression(steps=6)
    check = mtl.metagrad.self_check(mtl.FirstOrder(), problem, meta)
    assert math.isnan(check.cosine["inner"]), "structurally zero"
    assert check.norm_ratio["inner"] == 0
    assert 0.5 < check.cosine["start"] < 0.9999
    assert check.worst == min(v for v in check.cosine.values() if not math.isnan(v))
    exact = mtl.metagrad.self_check(mtl.Windowed(window=1), problem, meta)
    assert exact.worst > 1 - 1e-12
    assert "start 1.0000 (1.00)" in str(exact)


def test_calibrate_radius_finds_a_radius_between_truncation_and_rounding():
    problem, meta = regression(steps=3)
    problem, meta = _in(torch.float32, problem, meta)
    pull = mtl.metagrad.calibrate_radius(problem, meta, radii=(1e-6, 1e-2, 10.0))
    assert pull.radius == 1e-2


def test_calibrate_radius_refuses_when_nothing_is_usable():
    problem, meta = regression(steps=3)
    with pytest.raises(ValueError, match=r"no finite difference is usable.*10: .*%.*pull='reverse'"):
        mtl.metagrad.calibrate_radius(problem, meta, radii=(10.0, 30.0))


def test_calibrate_radius_without_a_second_derivative_compares_neighbours():
    problem, meta = regression(steps=3)
    wrap = lambda w: {k: _Once.apply(v) for k, v in w.items()}  # noqa: E731
    once = replace(problem, inner_loss=lambda w, m, k: problem.inner_loss(wrap(w), m, k))
    for estimator in (mtl.Rematerialised(), mtl.Exact()):  # autograd itself would return zeros
        with pytest.raises(RuntimeError, match="no second derivative"):
            estimator(once, meta)
    assert mtl.metagrad.calibrate_radius(once, meta, radii=(1e-12, 1e-3, 2e-3, 10.0)).radius == 1e-3


class _Once(torch.autograd.Function):
    """The identity, with a derivative of its own that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


def _in(dtype, problem, meta):
    up = lambda group: {k: v.double() for k, v in group.items()}  # noqa: E731
    down = lambda group: {k: v.to(dtype) for k, v in group.items()}  # noqa: E731
    low = replace(
        problem,
        init=lambda m: down(problem.init(up(m))),
        inner_loss=lambda w, m, k: problem.inner_loss(up(w), up(m), k).to(dtype),
        outer_loss=lambda w, m: problem.outer_loss(up(w), up(m)).to(dtype),
    )
    return low, down(meta)
