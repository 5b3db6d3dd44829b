"""Laws of inner loops whose steps draw samples with the current weights (``InnerProblem(sample=...)``)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from estimator_tables import ALL, EXACT, error, unrolled
from problems import OPTIMIZERS, on_policy, regression

import mtl
from mtl.metagrad import OnHost, calibrate_radius, curvature, proximal, tensors, unroll
from mtl.metagrad.problem import InnerProblem
from mtl.metagrad.tensors import Tensors

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


def drawn_in_place(problem: InnerProblem) -> InnerProblem:
    """For the plain reference, which evaluates every step once: it draws where it needs the sample."""

    def inner_loss(weights, meta, step):
        return problem.inner_loss(weights, meta, step, problem.sample(tensors.detach(weights), meta, step))

    return replace(problem, inner_loss=inner_loss, sample=None)


def recorded(problem: InnerProblem) -> tuple[InnerProblem, dict[int, Tensors], list[int]]:
    """The problem, what its steps drew last, and the steps in the order in which they drew."""
    last: dict[int, Tensors] = {}
    order: list[int] = []

    def sample(weights, meta, step):
        assert not torch.is_grad_enabled()
        assert not any(v.requires_grad for v in (*weights.values(), *meta.values()))
        order.append(step)
        last[step] = problem.sample(weights, meta, step)
        return last[step]

    return replace(problem, sample=sample), last, order


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("estimator", [mtl.Exact(), *EXACT.values()], ids=["exact", *EXACT])
def test_exact_estimators_are_autograd_of_the_loop_with_its_samples_held(estimator, options):
    problem, meta = regression(fixed_batch=False, **options)
    problem = on_policy(problem)
    result = estimator(problem, meta)
    assert error(result.grads, unrolled(drawn_in_place(problem), meta)) < 1e-10
    assert error(mtl.solve(problem, meta), result.weights) < 1e-12


@pytest.mark.parametrize("estimator", ALL.values(), ids=ALL)
def test_every_step_draws_once_and_replays(estimator):
    problem, meta = regression(steps=7, lr=0.05)
    problem, draws, order = recorded(on_policy(problem))
    found = estimator(problem, meta)
    lazy = isinstance(estimator, mtl.Windowed) and estimator.mode == "lazy"
    assert order == list(range(0, 7, estimator.window if lazy else 1))

    fixed = replace(problem, inner_loss=lambda w, m, k: problem.inner_loss(w, m, k, draws[k]), sample=None)
    assert error(found.grads, estimator(fixed, meta).grads) < 1e-12
    assert torch.allclose(found.losses, estimator(fixed, meta).losses)


def test_samples_follow_the_weights():
    problem, meta = regression(steps=7, lr=0.5)
    problem = on_policy(problem)
    start = tensors.detach(problem.init(meta))
    stale = replace(problem, sample=lambda w, m, k: problem.sample(start, m, k))
    assert error(mtl.Exact()(stale, meta).grads, mtl.Exact()(problem, meta).grads) > 1e-2


def test_samples_wait_where_the_states_do():
    problem, meta = regression(steps=3)
    problem = replace(on_policy(problem), storage=OnHost())
    draws = unroll(problem, meta).draws
    assert [d["actions"].dtype for d in draws] == [torch.bool] * 3
    assert error(mtl.Rematerialised()(problem, meta).grads, mtl.Exact()(problem, meta).grads) < 1e-10


def test_diagnostics_replay_too():
    problem, meta = regression(steps=3)
    problem = on_policy(problem)
    fixed = replace(
        problem,
        inner_loss=lambda w, m, k: problem.inner_loss(w, m, k, problem.sample(start, m, k)),
        sample=None,
    )
    start = tensors.detach(problem.init(meta))
    assert torch.allclose(curvature(problem, meta), curvature(fixed, meta))
    assert calibrate_radius(problem, meta, radii=[1e-3, 1e-2]).radius == 1e-3
    tied = proximal(problem, meta, 1.0)
    assert error(mtl.Rematerialised()(tied, meta).grads, mtl.Exact()(tied, meta).grads) < 1e-10
