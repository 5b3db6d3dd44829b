"""Laws that all estimators obey. A new one gets a row in ``estimator_tables.py``; every law then applies to it."""

from __future__ import annotations

import gc
import importlib
import math
import warnings
from dataclasses import replace

import pytest
import torch
from estimator_tables import (
    ALL,
    EXACT,
    INEXACT,
    MORE_THAN_THE_OUTER_LOSS,
    NEAR,
    cosine,
    counting,
    error,
    plain_gradient,
    unrolled,
)
from problems import OPTIMIZERS, regression
from torch.autograd.graph import saved_tensors_hooks

import mtl
from mtl.metagrad import tensors
from mtl.metagrad.optimizers import InnerAdam, InnerNormalised, InnerSGD
from mtl.metagrad.problem import InnerProblem

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


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
    constant = lambda *a: {k: v.detach() for k, v in plain_gradient(*a).items()}  # noqa: E731
    assert error(mtl.FirstOrder()(problem, meta).grads, unrolled(problem, meta, constant)) < 1e-10


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


def test_a_one_sided_difference_needs_no_second_gradient_where_it_is_known():
    problem, meta = regression(momentum=0.5)
    calls = 0

    def counted(weights, meta, step):
        nonlocal calls
        calls += 1
        return problem.inner_loss(weights, tensors.detach(meta), step)

    exact = mtl.Exact()(replace(problem, inner_loss=counted), meta).grads
    errors, calls = [], 0
    for radius in (4e-3, 2e-3, 1e-3):
        pull = mtl.metagrad.FiniteDifference(radius, sides=1)
        found = mtl.Rematerialised(pull)(replace(problem, inner_loss=counted), meta)
        errors.append(error(found.grads, exact))
    assert calls == 3 * 2 * problem.num_steps, "one in the loop, one for the product"
    assert errors[2] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_a_one_sided_difference_sees_meta_parameters_of_any_step():
    """One that acts in a middle step only, so that neither the first loss nor the last shows it."""
    base, meta = regression(steps=5)
    own = lambda w, meta, step: base.inner_loss(w, meta if step == 2 else tensors.detach(meta), step)  # noqa: E731
    problem = replace(base, inner_loss=own)
    exact = mtl.Exact()(problem, meta).grads
    pull = mtl.metagrad.FiniteDifference(1e-4, sides=1)
    assert exact["inner"].any()
    assert error(mtl.Rematerialised(pull)(problem, meta).grads, exact) < 1e-3
    lazy = mtl.Windowed(2, mode="lazy")(problem, meta).grads
    assert error(mtl.Windowed(2, mode="lazy", pull=pull)(problem, meta).grads, lazy) < 1e-3


@pytest.mark.parametrize(("tolerance", "reverse"), [(0.5, 1), (1e-12, 7)])
def test_auto_takes_differences_where_they_agree_with_the_exact_products(tolerance, reverse, monkeypatch):
    taken = 0
    evaluate = mtl.metagrad.Reverse.with_gradient

    def counted(*args):
        nonlocal taken
        taken += 1
        return evaluate(*args)

    monkeypatch.setattr(mtl.metagrad.Reverse, "with_gradient", counted)
    problem, meta = regression(steps=7)
    found = mtl.Rematerialised(mtl.metagrad.Automatic(tolerance))(problem, meta)
    assert taken == reverse
    assert found.pulls == 7
    assert error(found.grads, mtl.Exact()(problem, meta).grads) < 1e-2
    no_second = replace(problem, execution=mtl.metagrad.execution.Execution(no_double_backward_reason="sharded"))
    assert error(mtl.Rematerialised("auto")(no_second, meta).grads, found.grads) < 1e-2
    assert taken == reverse


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


@pytest.mark.parametrize(("name", "estimator", "gradients", "pulls"), [(k, *v[:3]) for k, v in INEXACT.items()])
def test_counts(name, estimator, gradients, pulls):
    problem, meta = regression(steps=7, lr=0.01)
    counted, calls = counting(problem)
    result = estimator(counted, meta)
    assert (result.gradients, result.pulls) == (gradients, pulls)
    shared = {"substepped(3)": 3, "binomial(1)": 7, "binomial(2)": 7, "neumann(4)": 1, "imaml(2)": 1, "sama": 2}
    shared |= {"binomial(2), damped": 7, "kfac(2)": 2}  # factors of layers are read off a gradient
    shared["evograd"] = 3  # forward passes of the copies
    assert len(calls) == gradients + shared.get(name, pulls), "pulls at one anchor share its graph"


def test_every_registered_estimator_is_held_to_the_laws():
    tested = {type(e) for e in ALL.values()} | {mtl.Exact}  # exact is what the others are compared with
    assert set(mtl.metagrad.ESTIMATORS.values()) == tested


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


@pytest.mark.parametrize("estimator", [e for e in ALL.values() if not isinstance(e, MORE_THAN_THE_OUTER_LOSS)])
def test_tasks_are_independent(estimator):
    # A batch of tasks gives what each gives alone: per-task cotangents divided by their number, shared ones averaged.
    if isinstance(estimator, mtl.Windowed):  # but for the length of sub-steps, and a mean over tasks of corrections
        estimator = replace(estimator, tau=0.99, rank_one=False)
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


class Token:
    """A tensor that autograd saved for a backward pass, counted while it is alive."""

    alive = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # an attached output would close a cycle with its own graph
        Token.alive += tensor.nbytes
        Token.peak = max(Token.peak, Token.alive)

    def __del__(self):
        Token.alive -= self.tensor.nbytes


@pytest.mark.parametrize("estimator", [e for e in ALL.values() if not isinstance(e, mtl.Exact)])
def test_no_graph_of_a_step_is_alive_when_the_initial_weights_are_reached(estimator):
    importlib.import_module("torch._dynamo")  # once it is loaded, pulls keep out of its way
    problem, meta = regression(steps=4)
    alive: list[int] = []

    def init(meta):
        alive.append(Token.alive)
        return problem.init(meta)

    Token.alive = 0
    gc.disable()  # in a reference cycle, a graph would live on until the garbage collector comes
    try:
        with saved_tensors_hooks(Token, lambda token: token.tensor):
            estimator(replace(problem, init=init), meta)
    finally:
        gc.enable()
    assert alive[-1] == Token.alive == 0


def test_memory_is_flat_in_the_number_of_steps():
    """Bytes of activations saved for backward and alive at once, counted as they are saved, not guessed."""

    def peak(estimator, steps):
        problem, meta = regression(steps=steps, examples=60)  # graphs of the network that outweigh those of updates
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
        (lambda: mtl.metagrad.KFAC(iterations=-1), "iterations=-1"),
        (lambda: mtl.metagrad.KFAC(damping=-1), "damping=-1"),
        (lambda: mtl.metagrad.KFAC(factor_damping=0), "factor_damping=0"),
        (lambda: mtl.metagrad.KFAC(tolerance=-1), "tolerance=-1"),
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
        (lambda: InnerAdam(clip=0), "clip=0"),
        (lambda: InnerNormalised(lr=-1), "positive"),
        (lambda: InnerNormalised(momentum=1), "momentum=1"),
        (lambda: InnerNormalised(weight_decay=-1), "weight_decay=-1"),
        (lambda: InnerNormalised(eps=0), "eps=0"),
        (lambda: InnerSGD(clip=math.inf), "clip=inf"),
        (lambda: mtl.metagrad.FiniteDifference(sides=3), "sides=3"),
        (lambda: mtl.metagrad.Automatic(tolerance=0), "tolerance=0"),
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
    torch.manual_seed(0)  # the bound is relative to a product that other directions make as small as rounding
    a, b = ({k: torch.randn_like(v) for k, v in w.items()} for _ in range(2))
    for pull in (mtl.metagrad.Reverse(), mtl.metagrad.ForwardOverReverse(), mtl.metagrad.FiniteDifference(radius=1e-3)):
        products = pull.at(problem, w, meta, 0)
        assert torch.allclose(tensors.dot(a, products(b)[0]), tensors.dot(products(a)[0], b), rtol=1e-4)
