"""Windows against closed forms: the coarse loop that a lazy one is, the straight-through form, and the cliff."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from estimator_tables import cosine, error, plain_gradient, unrolled
from problems import OPTIMIZERS, quadratic, regression

import mtl
from mtl.metagrad import tensors
from mtl.metagrad.optimizers import InnerSGD
from mtl.metagrad.products import AbstractPull, Reverse
from mtl.metagrad.sweep import Sweep

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", [2, 3, 6, 10])
def test_lazy_is_autograd_of_its_own_coarse_loop(size, options):
    problem, meta = regression(steps=7, **options)
    kept = {}

    def reuse(problem, w, meta, step):
        if step % size == 0:
            kept["g"] = plain_gradient(problem, w, meta, step)
        return kept["g"]

    assert error(mtl.Windowed(window=size, mode="lazy")(problem, meta).grads, unrolled(problem, meta, reuse)) < 1e-10


def test_lazy_with_plain_sgd_is_maml_with_fewer_larger_steps():
    problem, meta = regression(steps=6)
    coarse = replace(problem, num_steps=2, optimizer=InnerSGD(lr=lambda m: 3 * m["rate"]))
    assert error(mtl.Windowed(window=3, mode="lazy")(problem, meta).grads, mtl.Exact()(coarse, meta).grads) < 1e-10


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
            g = plain_gradient(problem, path[-1], meta, step)
            path.append({k: (v - lr * g[k]).detach().requires_grad_() for k, v in path[-1].items()})
        middle, end = path[at - start], path[-1]
        shifted = {k: v + (middle[k] - v).detach() for k, v in w.items()}
        g = plain_gradient(problem, shifted, meta, at)
        w = {k: (s := v - n * lr * g[k]) + (end[k] - s).detach() for k, v in w.items()}
    keys = ["start", "both", "inner", "outer"]
    expected = torch.autograd.grad(problem.outer_loss(w, meta).mean(), [meta[k] for k in keys])
    found = mtl.Windowed(window=size, mode="exact-forward", anchor=anchor, rank_one=False)(problem, meta).grads
    assert error({k: found[k] for k in keys}, dict(zip(keys, expected, strict=True))) < 1e-10


def test_substepping_every_step_is_exact_on_a_quadratic():
    problem, meta = quadratic(12, curvature=3.0, lr=0.3)
    estimator = mtl.Windowed(window=4, mode="exact-forward", substeps=4)
    assert error(estimator(problem, meta).grads, mtl.Exact()(problem, meta).grads) < 1e-10


def test_adaptive_survives_the_cliff_where_a_plain_window_falls():
    problem, meta = quadratic(12, curvature=1.0, lr=0.75)  # size * lr * h_max = 3
    exact = mtl.Exact()(problem, meta).grads
    plain = mtl.Windowed(window=4, mode="exact-forward", rank_one=False)(problem, meta)
    for rank_one in (True, False):
        adaptive = mtl.Windowed(window=4, rank_one=rank_one)(problem, meta)
        for key in exact:
            assert cosine(adaptive.grads, exact, key) > 0.95
    assert min(cosine(plain.grads, exact, k) for k in exact) < 0.9
    assert plain.diagnostics["max_rho"] > 0.5, "the diagnostic says why"


class Watched(AbstractPull):
    """Exact products, and the step of every linearisation with the number of products taken of it."""

    def __init__(self):
        self.taken = []

    def at(self, problem, weights, meta, step, gradient=None):
        products = Reverse().at(problem, weights, meta, step, gradient)
        self.taken.append([step, 0])

        def counted(cotangent):
            self.taken[-1][1] += 1
            return products(cotangent)

        return counted


@pytest.mark.parametrize(
    ("steps", "lr", "anchor", "first"),
    [
        (5, 0.19, "middle", [2, 1]),  # 0.95 of the cotangent, between 2 and 4 tau: its product serves for two steps
        (5, 0.19, "start", [0, 1]),  # none of the two is anywhere near the anchor
        (10, 0.18, "middle", [5, 1]),  # 1.8, beyond 4 tau
        (5, 0.3, "middle", [2, 1]),  # 1.5, but a single step is left
    ],
    ids=["serves", "far anchor", "far too long", "single step"],
)
def test_a_product_that_changes_too_much_serves_for_the_last_steps(steps, lr, anchor, first):
    # All directions have a curvature of one.
    problem, meta = quadratic(steps, curvature=1.0, lr=lr)
    problem = replace(
        problem,
        optimizer=InnerSGD(lr),
        inner_loss=lambda weights, meta, step: 0.5 * (weights["w"] - meta["inner"]).square().sum(-1),
    )
    pull = Watched()
    found = mtl.Windowed(steps, tau=0.4, anchor=anchor, pull=pull)(problem, meta).grads
    assert error(found, mtl.Exact()(problem, meta).grads) < 1e-10
    assert pull.taken[0] == first
    served = pull.taken[1][0] < steps - 2  # the next linearisation is already of the steps before the last two
    assert served == ((steps, lr, anchor) == (5, 0.19, "middle"))


def test_single_sub_steps_are_the_exact_sweep():
    for seed in range(4):
        problem, meta = regression(steps=3, lr=0.3, seed=seed)
        found = mtl.Windowed(3)(problem, meta)
        if found.pulls == 4:  # the window, and its three steps
            assert error(found.grads, mtl.Exact()(problem, meta).grads) < 1e-10
            return
    pytest.fail("no window was cut to single steps")


def test_one_task_does_not_take_the_product_of_another():
    a = {"w": torch.tensor([[1.0, 2.0], [1e-4, 0.0]])}
    b = {"w": torch.tensor([[2.0, 4.0], [0.0, 1e-4]])}
    factor, left = tensors.multiple(a, b)
    assert float(factor) == pytest.approx(0.5)
    assert float(left) == pytest.approx(5**0.5 / 2), "of the second task, whose cotangent is small"


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("behind", [3, 0], ids=["from the end", "before a window"])
def test_a_shorter_look_is_one_at_the_same_anchor(options, behind):
    problem, meta = regression(steps=7, **options)
    sweep = Sweep(problem, meta)
    if not behind:
        sweep.back(4, 7)
    stop, before = 7 if behind else 4, sweep.pulls
    look = sweep.look(stop - 4, stop, stop - 2)
    found, expected = sweep.shorter(look, 2), sweep.look(stop - 2, stop, stop - 2)
    assert found.steps == expected.steps == range(stop - 2, stop)
    for name in ("h", "m", "cotangent"):
        assert error(getattr(found, name), getattr(expected, name)) < 1e-10, name
    assert error(sweep.behind(found).weights, sweep.behind(expected).weights) < 1e-10
    if not options:
        assert sweep.pulls - before == 2, "the shorter look asks for no product"


def test_adaptive_costs_nothing_where_curvature_is_low():
    problem, meta = quadratic(20, curvature=1.0, lr=0.01)
    result = mtl.Windowed(window=5)(problem, meta)
    assert result.pulls == 4
    assert cosine(result.grads, mtl.Exact()(problem, meta).grads, "start") > 0.999


def test_a_direction_that_one_window_has_taken_away_shortens_no_other():
    # Four steps at a quarter of the inverse curvature, linearised as one, leave nothing of the first direction.
    problem, meta = quadratic(12, curvature=1.0, lr=0.25)
    steep = torch.tensor([1.0, *[0.01] * 5], dtype=torch.float64)
    problem = replace(
        problem,
        inner_loss=lambda weights, meta, step: 0.5 * (steep * weights["w"] ** 2).sum(-1),
        outer_loss=lambda weights, meta: 0.5 * (steep.sqrt() * (weights["w"] - 1) ** 2).sum(-1),
    )
    adaptive = mtl.Windowed(window=4, tau=0.5, rank_one=False)(problem, meta)
    plain = mtl.Windowed(window=4, mode="exact-forward", rank_one=False)(problem, meta)
    assert adaptive.diagnostics["max_rho"] > 2 / 3 * 0.25, "of the first window, most of the cotangent"
    assert adaptive.pulls == plain.pulls == 3
    assert error(adaptive.grads, plain.grads) < 1e-12


def test_middle_anchor_is_best():
    problem, meta = regression(steps=12, lr=0.05)
    exact = mtl.Exact()(problem, meta).grads
    errors = {
        a: error(mtl.Windowed(window=3, mode="exact-forward", anchor=a, rank_one=False)(problem, meta).grads, exact)
        for a in ("start", "middle", "end")
    }
    assert errors["middle"] < min(errors["start"], errors["end"])


def test_window_error_shrinks_with_the_step_size():
    # At fixed K the relative error is first order in the step size: what a window leaves out is how the cotangent
    # changes inside it.
    def at(lr, rank_one=False):
        problem, meta = regression(steps=6, lr=lr)
        found = mtl.Windowed(window=3, mode="exact-forward", rank_one=rank_one)(problem, meta)
        return error(found.grads, mtl.Exact()(problem, meta).grads)

    assert at(0.002) / at(0.001) == pytest.approx(2, rel=0.1)
    assert at(0.01, rank_one=True) < at(0.01) / 2, "and what changes, the product tells"


def one_direction(steps: int, tasks: int = 3, **options) -> tuple[mtl.InnerProblem, dict]:
    """A loss that curves along one direction alone, of its own in each task, and is tilted along it by ``inner``."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    along = torch.nn.functional.normalize(draw(tasks, 6), dim=1)
    aim = 5 * along + 0.1 * draw(tasks, 6)  # most of it along that direction, also where windows have taken their share
    meta = {"start": draw(tasks, 6), "inner": draw(1), "rate": torch.full((1,), 0.3, dtype=torch.float64)}

    def inner_loss(weights, meta, step):
        place = (weights["w"] * along).sum(-1)
        return 0.5 * place**2 + meta["inner"] * place

    def outer_loss(weights, meta):
        return (weights["w"] * aim).sum(-1)

    optimizer = InnerSGD(lr=lambda meta: meta["rate"], **options)
    return mtl.InnerProblem(lambda meta: {"w": meta["start"]}, inner_loss, outer_loss, steps, optimizer), meta


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("pull", ["reverse", "forward-over-reverse"])
def test_a_window_is_exact_where_one_direction_alone_curves(options, pull):
    problem, meta = one_direction(8, tasks=1, **options)
    exact = mtl.Exact()(problem, meta).grads
    found = mtl.Windowed(window=4, mode="exact-forward", pull=pull)(problem, meta)
    assert found.pulls == 2
    assert error(found.grads, exact) < 1e-10
    plain = mtl.Windowed(window=4, mode="exact-forward", pull=pull, rank_one=False)(problem, meta)
    assert error(plain.grads, exact) > 0.1


def test_one_product_says_nothing_of_a_task_from_that_of_another():
    problem, meta = one_direction(8)
    estimator = mtl.Windowed(window=4, mode="exact-forward")
    exact, found = mtl.Exact()(problem, meta).grads, estimator(problem, meta).grads
    assert error({"": found["start"]}, {"": exact["start"]}) < 1e-10
    assert error({"": found["inner"]}, {"": exact["inner"]}) < 0.05, "corrected by a mean over the tasks"


@pytest.mark.parametrize("curvature", [1.0, 3.0, 30.0])
def test_past_the_cliff_one_product_per_window_keeps_the_direction(curvature):
    problem, meta = quadratic(12, curvature=curvature, lr=0.9 / curvature)  # size * lr * h_max = 4.5
    exact = mtl.Exact()(problem, meta).grads
    found = mtl.Windowed(window=5, mode="exact-forward")(problem, meta)
    plain = mtl.Windowed(window=5, mode="exact-forward", rank_one=False)(problem, meta)
    assert found.pulls == plain.pulls == 3
    assert min(cosine(found.grads, exact, k) for k in exact) > 0.9
    assert min(cosine(plain.grads, exact, k) for k in exact) < 0.7


def test_a_product_without_positive_curvature_changes_nothing():
    problem, meta = quadratic(12, curvature=1.0, lr=0.05)
    hill = replace(problem, inner_loss=lambda weights, meta, step: -problem.inner_loss(weights, meta, step))
    found, plain = (mtl.Windowed(4, "exact-forward", rank_one=r)(hill, meta).grads for r in (True, False))
    assert error(found, plain) == 0
    flat = replace(problem, inner_loss=lambda weights, meta, step: 0 * problem.inner_loss(weights, meta, step))
    for name, grad in mtl.Windowed(4)(flat, meta).grads.items():
        assert grad.isfinite().all(), name


def with_mean_of_window(problem: mtl.InnerProblem) -> mtl.InnerProblem:
    mean = lambda weights, meta, steps: sum(problem.inner_loss(weights, meta, k) for k in steps) / len(steps)  # noqa: E731
    return replace(problem, window_loss=mean)


@pytest.mark.parametrize("mode", ["adaptive", "exact-forward"])
def test_a_window_at_the_mean_of_its_minibatches_is_exact_to_first_order(mode):
    errors = {}
    for lr, momentum in product((1e-3, 1e-4), (0.0, 0.9)):
        problem, meta = regression(steps=7, lr=lr, momentum=momentum, fixed_batch=False)
        exact = mtl.Exact()(problem, meta).grads["inner"]
        for name, p in {"apart": problem, "mean": with_mean_of_window(problem)}.items():
            found = mtl.Windowed(3, mode)(p, meta).grads["inner"]
            errors[name, lr, momentum] = error({"": found}, {"": exact})
    assert errors["mean", 1e-4, 0.0] < errors["mean", 1e-3, 0.0] / 5 < 2e-3
    assert errors["apart", 1e-4, 0.0] > 0.2, "however small the steps are"
    assert errors["mean", 1e-4, 0.9] < errors["apart", 1e-4, 0.9] / 4, "momentum weighs the steps of a window unequally"


def test_substeps_share_the_mean_of_their_window_and_a_lazy_one_has_its_own_loop():
    problem, meta = regression(steps=6, fixed_batch=False)
    asked, mean = [], with_mean_of_window(problem).window_loss
    counting = replace(problem, window_loss=lambda *a: asked.append(a[2]) or mean(*a))
    mtl.Windowed(3, "exact-forward", substeps=3)(counting, meta)
    assert asked == [range(3, 6), range(3)]
    lazy = mtl.Windowed(3, "lazy")
    assert error(lazy(counting, meta).grads, lazy(problem, meta).grads) == 0
    assert mtl.Windowed(1)(counting, meta).pulls == 6
    assert len(asked) == 2, "single steps have a loss of their own"
    with pytest.raises(ValueError, match="leave window_loss out"):
        replace(counting, sample=lambda weights, meta, step: {})
