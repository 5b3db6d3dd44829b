"""Cross-validation inside the support set: what is left out, how candidates are judged, what comes of the mixture."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import FeatureStatistics
from mtl.fewshot.choosing import Choice, choose, folds, mix

UNEQUAL = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [2, 1, 0, 1, 1, 0, 2]])
THREE_SHOT = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2], [2, 1, 0, 1, 1, 0, 2, 0, 2]])
ONE_SHOT = torch.tensor([[0, 1, 2, 2, 2, 1, 1]] * 2)


def learner(
    kind: str = "channelwise", levels: str = "all", sites: str = "none", even: bool | None = None, **options
) -> mtl.MetaLearner:
    """Away from the identity."""
    torch.manual_seed(0)
    b = backbone(levels=levels, sites=sites)
    generator = mtl.fewshot.make_generator(kind, b, **({} if even is None else {"even": even}))
    made = mtl.MetaLearner(b, generator, mtl.CentredRidge(), **options)
    noise = torch.Generator().manual_seed(1)
    for name, p in made.generator.named_parameters():
        if "log_lr" not in name:
            p.data += 0.2 * torch.randn(p.shape, generator=noise)
    made.generator.standardise(FeatureStatistics.of(b, [episode().query.inputs]))
    return made


def episode(labels: torch.Tensor = UNEQUAL) -> mtl.Episode:
    [(_, e)] = mtl.stack_by_shape([Blobs(shots=3).sample(i) for i in range(2)])
    by_class = e.support.labels[0].argsort()
    counts = torch.zeros(2, 3, dtype=torch.int64)
    chosen = torch.empty_like(labels)
    for t in range(2):
        for i, y in enumerate(labels[t].tolist()):
            chosen[t, i] = by_class[3 * y + counts[t, y] % 3]
            counts[t, y] += 1
    images = torch.stack([e.support.inputs.tensor[t, chosen[t]] for t in range(2)])
    return mtl.Episode(mtl.Examples(images, labels), e.query, 3)


def test_each_fold_leaves_out_one_example_per_class():
    found = folds(UNEQUAL, 3)
    assert found is not None
    stay, out = found
    assert stay.shape == (4, 4)
    assert out.shape == (4, 3)
    flat = UNEQUAL.flatten()
    for i in range(4):
        assert sorted(flat[out[i]].tolist()) == [0, 1, 2]
        assert sorted(torch.cat([stay[i], out[i]]).tolist()) == list(range(7 * (i // 2), 7 * (i // 2) + 7))
    assert len(set(out[:2].flatten().tolist())) == 6, "another one every time"
    assert folds(ONE_SHOT, 3) is None
    capped = folds(torch.arange(3).repeat(12)[None], 3)
    assert capped is not None
    assert len(capped[0]) == 10


SETTINGS = pytest.mark.parametrize(
    ("kind", "levels", "sites", "steps"),
    [("channelwise", "all", "none", 0), ("static", "all", "none", 0), ("dense", "last", "norm", 1)],
)


@SETTINGS
@pytest.mark.parametrize(("labels", "count"), [(UNEQUAL, 2), (THREE_SHOT, 3)], ids=["unequal", "three-shot"])
def test_candidates_are_judged_on_what_they_did_not_see(kind, levels, sites, steps, labels, count):
    """Against adapting to every fold of every task alone, and reading off the probability of what was left out."""
    made, e = learner(kind, levels, sites, inner_steps=steps), episode(labels)
    choice = made.adapt(e.support, cross_validate=True).choice
    assert choice is not None
    split = folds(labels, 3)
    assert split is not None
    images = e.support.inputs.flatten()
    for t in range(2):
        scores = dict.fromkeys(choice.names, 0.0)
        for stay, out in list(zip(*split, strict=True))[count * t : count * (t + 1)]:
            support = mtl.Examples(images.take(stay).with_task_axis(), labels.flatten()[stay][None])
            right = labels.flatten()[out]
            emitted = made.adapt(support).meta
            for name, meta in mtl.fewshot.choosing.candidates(made.generator, emitted).items():
                logits = made.adapt(support, meta=meta).logits(images.take(out).with_task_axis())[0]
                scores[name] += -float(torch.nn.functional.cross_entropy(logits, right)) / count
        assert {r.name: r.log_likelihood for r in choice.rows(t)} == pytest.approx(scores, rel=1e-3, abs=1e-4)
    assert (choice.folds, choice.left_out) == (count, 3 * count)
    if kind == "channelwise" and count > 2:  # with two examples of a class, a fold has no evidence
        of = dict(zip(choice.names, choice.log_likelihood.T, strict=True))
        assert not torch.allclose(of["levels by evidence"], of["all levels"], atol=1e-3)
    head_start = torch.tensor([0.0] * (len(choice.names) - 1) + [2.0])
    expected = (0.5 * 3 * count * choice.log_likelihood + head_start).softmax(1)
    torch.testing.assert_close(choice.weights, expected, atol=0.05, rtol=0)  # but for what was negligible


@SETTINGS
def test_the_mixture_is_of_all_candidates_adapted_to_the_whole_support(kind, levels, sites, steps):
    made, e = learner(kind, levels, sites, inner_steps=steps), episode()
    adapted = made.adapt(e.support, cross_validate=True)
    assert adapted.choice is not None
    emitted = made.adapt(e.support).meta
    logits = [
        made.adapt(e.support, meta=meta).logits(e.query.inputs)
        for meta in mtl.fewshot.choosing.candidates(made.generator, emitted).values()
    ]
    expected = sum(w.view(-1, 1, 1) * z for w, z in zip(adapted.choice.weights.T, logits, strict=True))
    torch.testing.assert_close(adapted.logits(e.query.inputs), expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(expected, logits[-1], atol=1e-2)


def test_the_last_level_is_a_candidate_as_if_there_were_no_other():
    made, e = learner(), episode()
    meta = mtl.fewshot.choosing.candidates(made.generator, made.adapt(e.support).meta)["last level"]
    found = made.adapt(e.support, meta=meta).logits(e.query.inputs)
    standardised = [made.generator.standard.apply_to(made.backbone(part.inputs), {}) for part in (e.support, e.query)]
    support, query = (v[..., made.backbone.last] for v in standardised)
    factor = made.generator.logit_scale(meta)
    assert factor is not None
    torch.testing.assert_close(found, factor * made.head.logits(query, {}, (support, UNEQUAL), 3), atol=1e-3, rtol=1e-3)


def loss_of_left_out(x: torch.Tensor, labels: torch.Tensor) -> float:
    """Cross-entropy of every example under a ridge regression, with an intercept, fitted to the others; 1 at chance."""
    total = 0.0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        seen, targets = x[others], torch.nn.functional.one_hot(labels[others], 3).double()
        centred = seen - seen.mean(0)
        dual = torch.linalg.solve(
            centred @ centred.T / x.shape[1] + 0.1 * torch.eye(len(others)), targets - targets.mean(0)
        )
        scores = targets.mean(0) + (x[i] - seen.mean(0)) @ centred.T @ dual / x.shape[1]
        total += float(torch.nn.functional.cross_entropy(5 * scores, labels[i]))
    return total / len(x) / math.log(3)


def test_levels_count_by_what_they_say_of_left_out_examples():
    made, e = learner(), episode()
    emitted = made.adapt(e.support).meta
    found = mtl.fewshot.choosing.candidates(made.generator, emitted)
    factors = found["levels by evidence"]["scale"]
    torch.testing.assert_close(factors.square().mean(1), torch.ones(2))
    torch.testing.assert_close(found["generator by evidence"]["scale"], emitted["scale"] * factors)
    values = made.generator.standard.apply_to(made.backbone(e.support.inputs), {}).double()
    widths = [level.width for level in made.backbone.levels]
    for t in range(2):
        losses = [loss_of_left_out(level[t], UNEQUAL[t]) for level in values.split(widths, -1)]
        for level, loss in zip(factors[t].split(widths), losses, strict=True):
            expected = factors[t, 0] * math.exp(8 * (losses[0] - loss))
            torch.testing.assert_close(level, expected.expand_as(level), rtol=1e-3, atol=0)


def test_levels_that_all_fail_count_alike():
    made, e = learner(), episode()
    meta = made.adapt(e.support).meta
    meta["level_loss"] = torch.full_like(meta["level_loss"], 20.0)
    factors = mtl.fewshot.choosing.candidates(made.generator, meta)["levels by evidence"]["scale"]
    torch.testing.assert_close(factors, torch.ones_like(factors))


def test_no_level_has_evidence_where_nothing_can_be_left_out_or_there_is_one_level():
    for made, labels in ((learner(), ONE_SHOT), (learner(levels="last"), UNEQUAL)):
        choice = made.adapt(episode(labels).support, cross_validate=True).choice
        assert choice is not None
        assert not [name for name in choice.names if "evidence" in name]


def test_evidence_of_levels_leaves_the_inside_of_the_network_as_it_is():
    made, e = learner(sites="norm"), episode()
    found = mtl.fewshot.choosing.candidates(made.generator, made.adapt(e.support).meta)
    inside = found["levels by evidence"]["scale"][:, : -made.backbone.width]
    assert inside.shape[1] > 0
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_a_mixture_of_linear_classifiers_is_one():
    made, e = learner(even=False), episode()
    adapted = made.adapt(e.support, cross_validate=True)
    for task in range(2):
        _, weight, bias = adapted.merge(task)
        plain = made.backbone(e.query.inputs)[task] @ weight.T + bias
        torch.testing.assert_close(plain, adapted.logits(e.query.inputs)[task], atol=1e-3, rtol=1e-3)
    inside = learner("channelwise", "last", "norm", inner_steps=0).adapt(episode(ONE_SHOT).support, cross_validate=True)
    with pytest.raises(ValueError, match=r"a mixture of several networks is no single one; adapt\(support, cross_val"):
        inside.merge()
    with pytest.raises(ValueError, match="no linear map of features"):
        learner().adapt(e.support).merge()


def test_with_one_example_of_a_class_the_head_start_decides():
    made, e = learner(), episode(ONE_SHOT)
    adapted, plain = made.adapt(e.support, cross_validate=True), made.adapt(e.support)
    expected = torch.tensor([0.0] * (len(adapted.choice.names) - 1) + [2.0]).softmax(0)
    torch.testing.assert_close(adapted.choice.weights, expected.expand(2, -1))
    assert adapted.choice.log_likelihood.isnan().all()
    assert str(adapted.choice).endswith("(mean of 2 tasks; as a class has one example, none was left out)")
    assert plain.choice is None
    with pytest.raises(ValueError, match="meta is one start"):
        made.adapt(e.support, meta=plain.meta, cross_validate=True)


def test_a_choice_says_what_it_was_and_why():
    choice = Choice(("plain", "half-way", "generator"), torch.zeros(1, 3), torch.tensor([[0, 0.17, 0.83]]), 5, 25)
    assert str(choice) == "generator 0.83, half-way 0.17 (5 folds, 25 left-out examples)"
    found = choose(("a", "b", "c"), torch.tensor([[-1.0, -0.5, -9.0], [0.0, 0.0, math.nan]]), 2, 6)
    assert found.weights[0, 2] == 0  # negligible
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2))
    torch.testing.assert_close(found.weights[1], torch.tensor([0.5, 0.5, 0]))  # what is not finite does not count
    assert float(found.weights[0, 1] / found.weights[0, 0]) == pytest.approx(math.exp(0.5 * 6 * 0.5), rel=1e-4)
    level = choose(("a", "generator"), torch.tensor([[-1.0, -1.0]]), 2, 6)
    assert float(level.weights[0, 1] / level.weights[0, 0]) == pytest.approx(math.exp(2), rel=1e-4)  # the head start


def test_the_mixture_is_of_log_probabilities():
    logits, weights = torch.randn(2, 3, 4, 5), torch.tensor([[0.2, 0.8], [1, 0], [0.5, 0.5]])
    found = mix(logits, weights).log_softmax(-1)
    expected = (weights.T.view(2, 3, 1, 1) * logits.log_softmax(-1)).sum(0).log_softmax(-1)
    torch.testing.assert_close(found, expected)


def test_the_network_runs_once_for_the_support_and_once_per_prediction():
    made, e = learner(), episode()
    passed: list[int] = []
    handle = made.backbone.model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    adapted = made.adapt(e.support, cross_validate=True)
    assert sum(passed) == 14
    adapted.logits(e.query.inputs)
    adapted.logits(e.query.inputs)
    assert sum(passed) == 14 + 2 * e.query.labels.numel()
    handle.remove()


def test_a_learner_that_cross_validates_is_a_method():
    made, e = learner(), episode()
    method = mtl.learner_method(made, "chosen", cross_validate=True)
    assert method.name == "chosen, 0 steps"
    found = method.predict(e)
    assert torch.equal(found, made.adapt(e.support, cross_validate=True).predict(e.query.inputs))
    assert not torch.equal(found, mtl.learner_method(made).predict(e))
