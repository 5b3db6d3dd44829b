"""Numbers that are refused or right: never zero, NaN or class 0 without a word."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.evaluation import learner_method
from mtl.metagrad import ESTIMATORS

NAN, INF = float("nan"), float("inf")
HEADS = [mtl.Cosine, mtl.Linear, mtl.NearestClassMean, mtl.Ridge, mtl.CentredRidge]
TASKS = 2


@pytest.fixture(scope="module")
def learner() -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    return mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2)


def episode() -> mtl.Episode:
    return mtl.Episode.stack([Blobs().sample(i) for i in range(TASKS)])


def poisoned(examples: mtl.Examples, value: float, task: int = 0, example: int = 1) -> mtl.Examples:
    inputs = examples.inputs.tensor.clone()
    inputs[task, example, 0, 3, 3] = value
    return mtl.Examples(inputs, examples.labels)


# --- inference mode ---------------------------------------------------------------------------------------------------


def test_adapting_in_inference_mode_moves_as_ever(learner):
    e = episode()
    expected = learner.adapt(e.support)
    with torch.inference_mode():
        inside = episode()  # its tensors are of the kind that no graph takes
        found = learner.adapt(inside.support)
        predicted = found.predict(inside.query.inputs)
    assert all(torch.equal(found.weights[k], v) for k, v in expected.weights.items())
    assert torch.equal(predicted, expected.predict(e.query.inputs))
    assert not torch.equal(found.weights["scale"], found.meta["scale"])


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_an_outer_step_has_its_gradients_wherever_it_is_called(learner, around):
    def gradients(context) -> list[torch.Tensor]:
        learner.generator.zero_grad()
        with context():
            learner.meta_step(episode())
        return [p.grad for p in learner.generator.parameters()]

    expected = gradients(torch.enable_grad)
    found = gradients(around)
    assert all(g is not None and torch.equal(g, e) for g, e in zip(found, expected, strict=True))


def quadratic(steps: int = 2, **changes) -> mtl.InnerProblem:
    target = torch.tensor([[1.0, 0.0]], **changes)
    return mtl.InnerProblem(
        lambda meta: {"w": meta["w"].clone()},
        lambda w, meta, step: (w["w"] - target).square().sum(1),
        lambda w, meta: w["w"].square().sum(1),
        steps,
    )


def test_solving_in_inference_mode_is_solving():
    meta = {"w": torch.ones(1, 2)}
    expected = mtl.solve(quadratic(), meta)
    problem = quadratic()
    with torch.inference_mode():
        found = mtl.solve(problem, {"w": torch.ones(1, 2)})
    assert torch.equal(found["w"], expected["w"])
    assert not torch.equal(found["w"], meta["w"])


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_no_estimator_returns_zero_in_inference_mode(name):
    problem, estimator = quadratic(), ESTIMATORS[name]()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode\(\); use torch\.no_grad\(\)"):
        estimator(problem, {"w": torch.ones(1, 2)})


def test_a_comparison_in_inference_mode_is_the_same(learner):
    def accuracies() -> list[list[float]]:
        torch.manual_seed(0)
        methods = [learner_method(learner), *mtl.baselines(learner.backbone, table=some("head", "modulation"), steps=3)]
        return [row.accuracy.tolist() for row in mtl.evaluate(methods, Blobs(), episodes=2, progress=False).rows]

    expected = accuracies()
    with torch.inference_mode():
        assert accuracies() == expected


# --- not finite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_not_finite_is_named(head, value, learner):
    own = mtl.MetaLearner(learner.backbone, learner.generator, head(), inner_steps=2)
    e = episode()
    adapted = own.adapt(e.support)
    with pytest.raises(ValueError, match=r"^input 1 of task 1 holds NaN or infinity; leave it out$"):
        adapted.predict(poisoned(e.query, value, task=1).inputs)
    adapted = own.adapt(poisoned(e.support, value))
    with pytest.raises(ValueError, match=r"^example 1 of the support set of task 0 holds NaN or infinity"):
        adapted.predict(e.query.inputs)
    with pytest.raises(ValueError, match=r"task 0 is not finite, so there is nothing to export"):
        adapted.merge(0)
    adapted.merge(1)  # the other task is none the worse


def test_an_inner_loop_that_ran_away_is_named(learner):
    e = episode()
    view = learner.view(e.support)
    with torch.no_grad():
        meta = learner.generator(view)
    adapted = learner.adapt(e.support, meta=meta | {"log_lr": torch.full_like(meta["log_lr"], 80.0)})
    with pytest.raises(ValueError, match=r"the inner loop of task 0 ran away: .*; adapt with fewer steps="):
        adapted.predict(e.query.inputs)


def test_a_network_that_overflows_is_named(learner):
    e = episode()
    huge = learner.backbone.model.get_parameter("norm.weight")
    adapted = learner.adapt(e.support)
    before = huge.clone()
    try:
        huge.fill_(INF)
        with pytest.raises(ValueError, match=r"makes NaN or infinity of input 0 of task 0, which is finite; check"):
            adapted.predict(e.query.inputs)
    finally:
        huge.copy_(before)


def test_answers_that_are_not_finite_count_as_wrong_and_are_counted(learner):
    class Poisoned(Blobs):
        def sample(self, index: int) -> mtl.Episode:
            e = super().sample(index)
            return replace(e, support=poisoned(e.support, NAN)) if index == 1 else e

    methods = [learner_method(learner, steps=0), *mtl.baselines(learner.backbone, table=some("ridge", "lda"))]
    with pytest.warns(UserWarning, match="not finite") as warned:
        found = mtl.evaluate(methods, Poisoned(), episodes=2, progress=False)
    said = sorted(str(w.message).partition(";")[0] for w in warned)
    assert said == sorted(f"{m.name!r}: answers in 1 of 2 episodes are not finite, and count as wrong" for m in methods)
    assert {row.method: row.accuracy[1] for row in found.rows} == {m.name: 0.0 for m in methods}


def some(*keys: str) -> dict:
    return mtl.fewshot.choose_baselines(*keys)


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adam_moves_weights_in_half_precision_as_it_moves_precise_ones(dtype):
    def solved(dtype: torch.dtype) -> torch.Tensor:
        problem = replace(quadratic(5, dtype=dtype), optimizer=mtl.InnerAdam(lr=0.125))
        return mtl.solve(problem, {"w": torch.zeros(1, 2, dtype=dtype)})["w"]

    found = solved(dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), solved(torch.float64), atol=0.01, rtol=0)
    assert found[0, 1] == 0, "no gradient, no step"


def test_adam_counts_steps_of_mixed_precisions():
    adam = mtl.InnerAdam()
    weights = {"a": torch.zeros(1, 2, dtype=torch.bfloat16), "b": torch.zeros(1, 2)}
    gradient = {k: torch.ones_like(v) for k, v in weights.items()}
    weights, state = adam.update(weights, adam.init(weights), gradient, {})
    assert torch.allclose(weights["a"].float(), weights["b"], rtol=1e-2)
    assert {k: v.dtype for k, v in weights.items()} == {"a": torch.bfloat16, "b": torch.float32}
    assert all(v.dtype == torch.float32 for v in state.values())


# --- numbers out of range ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", [-5.0, 0.0, NAN, INF])
def test_a_scale_that_inverts_or_flattens_is_refused(head, scale):
    with pytest.raises(ValueError, match=rf"{head.__name__}\(scale={scale}\): expected a positive, finite number"):
        head(scale=scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(mtl.InnerSGD, lr=INF), r"InnerSGD\(lr=inf\)"),
        (partial(mtl.InnerSGD, lr=NAN), r"InnerSGD\(lr=nan\)"),
        (partial(mtl.InnerSGD, weight_decay=NAN), r"InnerSGD\(weight_decay=nan\)"),
        (partial(mtl.InnerSGD, momentum=NAN), r"InnerSGD\(momentum=nan\)"),
        (partial(mtl.InnerAdam, lr=INF), r"InnerAdam\(lr=inf\)"),
        (partial(mtl.InnerAdam, eps=INF), r"InnerAdam\(eps=inf\)"),
        (partial(mtl.metagrad.EvoGrad, sigma=INF), r"EvoGrad\(sigma=inf\)"),
    ],
)
def test_numbers_that_disable_an_inner_loop_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["channelwise", "dense", "static", "code"])
@pytest.mark.parametrize("step_size", [0.0, -0.1, NAN, INF])
def test_step_sizes_have_a_logarithm(kind, step_size, learner):
    with pytest.raises(ValueError, match=rf"\(step_size={step_size}\): expected a positive, finite number"):
        mtl.fewshot.make_generator(kind, learner.backbone, step_size=step_size)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("channelwise", {"hidden": 0}), ("dense", {"hidden": -1}), ("code", {"size": 0}), ("dense", {"gate": NAN})],
)
def test_generators_of_no_size_are_refused(kind, options, learner):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=rf"\({name}={value}\): expected"):
        mtl.fewshot.make_generator(kind, learner.backbone, **options)


@pytest.mark.parametrize("steps", [-1, 1.5])
def test_inner_steps_are_whole(steps, learner):
    with pytest.raises(ValueError, match=rf"MetaLearner\(inner_steps={steps}\): expected 0"):
        mtl.MetaLearner(learner.backbone, learner.generator, inner_steps=steps)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "as_given",
    [lambda v: v.int(), lambda v: v.to(torch.uint8), lambda v: v.numpy().astype(np.int32), lambda v: v.tolist()],
    ids=["int32", "uint8", "numpy", "list"],
)
def test_labels_of_any_integer_kind_are_labels(as_given, learner):
    support = episode().support
    expected = learner.adapt(support)
    found = learner.adapt(mtl.Examples(support.inputs, as_given(support.labels)))
    assert found.ways == expected.ways
    assert torch.equal(found.weights["scale"], expected.weights["scale"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y.float()), r"labels are torch\.float32: expected integers"),
        (lambda x, y: (x, y.bool()), r"labels are torch\.bool: expected integers"),
        (lambda x, y: (x, y[0]), r"labels of shape \(6,\) for \(tasks, examples\) \(2, 6\)"),
        (lambda x, y: (x, y[:, 1:]), r"labels of shape \(2, 5\) for \(tasks, examples\) \(2, 6\)"),
        (lambda x, y: (x[0], y[0]), r"give both a task axis, such as inputs\[None\]"),
        (lambda x, y: (x, y - 1), r"a label of the support set is -1; number classes 0, 1"),
        (lambda x, y: (x[:, :0], y[:, :0]), r"needs at least two classes"),
    ],
    ids=["float", "bool", "no task axis", "too few", "neither has a task axis", "negative", "none"],
)
def test_other_labels_are_refused_in_words(change, message, learner):
    support = episode().support
    with pytest.raises(ValueError, match=message):
        learner.adapt(mtl.Examples(*change(support.inputs.tensor, support.labels)))
