"""All methods see the same episodes and no query label; controls are what they say; baselines are as elsewhere."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tiny import Blobs, backbone

import mtl


def episode(n: int = 4) -> mtl.Episode:
    [(_, e)] = mtl.stack_by_shape([Blobs().sample(i) for i in range(n)])
    return e


def learner(kind: type) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    options: dict[str, Any] = {"gate": 0.5} if kind is mtl.SupportConditioned else {}
    return mtl.MetaLearner(b, kind(b.sites, b.width, **options), inner_steps=2)


def test_no_method_sees_a_query_label():
    seen = []
    spy = mtl.fewshot.Method("spy", lambda e: (seen.append(e.query.labels.clone()), e.query.labels)[1])
    comparison = mtl.evaluate([spy], Blobs(), episodes=3, progress=False)
    assert not any(s.any() for s in seen)
    assert comparison.rows[0].accuracy.mean() == pytest.approx(1 / 3)


def test_the_same_episodes_for_all_and_whatever_the_chunks():
    guess = mtl.fewshot.Method("a", lambda e: e.query.inputs.tensor.sum((2, 3, 4)).long() % e.ways)
    other = mtl.fewshot.Method("b", guess.predict)
    whole = mtl.evaluate([guess, other], Blobs(), episodes=7, progress=False)
    parts = mtl.evaluate([guess], Blobs(), episodes=7, tasks_per_chunk=2, progress=False)
    assert (whole.rows[0].accuracy == whole.rows[1].accuracy).all()
    assert (whole.rows[0].accuracy == parts.rows[0].accuracy).all()
    assert whole.families[:3] == ("family 0", "family 1", "family 0")


def test_controls_mislead_the_conditioned_generator_and_not_the_static_one():
    e = episode(8)
    conditioned, static = learner(mtl.SupportConditioned), learner(mtl.Static)
    for control, same in zip(mtl.fewshot.controls(conditioned), mtl.fewshot.controls(static), strict=True):
        assert control.kind == "control"
        assert torch.equal(same(e), mtl.fewshot.static_control(static)(e)), (
            "a static generator ignores what it is shown"
        )
    metas = []
    conditioned.adapt = lambda support, steps=None, meta=None, **more: metas.append(meta) or _Guess()  # type: ignore[method-assign]
    own = conditioned.generator(conditioned.view(e.support))
    for method in mtl.fewshot.controls(conditioned):
        method(e)
    misled = metas
    assert not any(torch.allclose(own["scale"], m["scale"]) for m in misled)
    assert (misled[-1]["scale"] == 1).all()


class _Guess:
    def logits(self, inputs):
        return torch.zeros(*inputs.shape[:2], 3)


@pytest.mark.parametrize("i", range(8))
def test_baselines_treat_every_task_alone(i):
    b, e = backbone(), episode(3)
    method = mtl.baselines(b, steps=3)[i]
    before = {k: v.clone() for k, v in b.state_dict().items()}
    together = method(e)
    alone = torch.cat([method(e[t : t + 1]) for t in range(3)])
    assert (together == alone).float().mean() > 0.95, "rounding may turn a tie"
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())


def test_logistic_regression_is_sklearns():
    b, e = backbone(), episode(1)
    seen, asked = (F.normalize(b(x.inputs), dim=-1)[0].numpy() for x in (e.support, e.query))
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(seen, e.support.labels[0].numpy()).predict(asked)
    found = next(m for m in mtl.baselines(b) if m.name == "logistic regression")(e)
    assert found[0].tolist() == expected.tolist()


def test_tune_takes_the_best():
    right = mtl.fewshot.Method("r", lambda e: torch.arange(3).repeat_interleave(3)[None].expand(e.tasks, -1))
    wrong = mtl.fewshot.Method("w", lambda e: torch.zeros_like(e.query.labels))
    best, scores = mtl.fewshot.tune({0.1: wrong, 0.2: right}, Blobs(), episodes=4)
    assert best == 0.2
    assert scores[0.2] == 1.0


def test_errors():
    with pytest.raises(ValueError, match="episodes=0"):
        mtl.evaluate(learner(mtl.Static), Blobs(), episodes=0)
    with pytest.raises(ValueError, match="tasks_per_chunk"):
        mtl.fewshot.controls(learner(mtl.Static))[0](episode(1))


# --- controls, uneven episodes, mistakes ------------------------------------------------------------------------------


def constant(label: int) -> mtl.fewshot.Method:
    return mtl.fewshot.Method(f"always {label}", lambda e: torch.full_like(e.query.labels, label))


def emitted_by_controls(found: mtl.MetaLearner, e: mtl.Episode, monkeypatch) -> dict[str, dict[str, torch.Tensor]]:
    """What each control hands to ``adapt`` as the generator's output; the support set must be the right one."""
    metas: list[dict[str, torch.Tensor]] = []
    adapt = found.adapt

    def spy(support, *, steps, meta, **more):
        assert torch.equal(support.inputs.tensor, e.support.inputs.tensor)
        assert torch.equal(support.labels, e.support.labels)
        metas.append(meta)
        return adapt(support, steps=steps, meta=meta)

    monkeypatch.setattr(found, "adapt", spy)
    controls = mtl.fewshot.controls(found)
    for control in controls:
        control(e)
    return {c.name.rpartition(",")[0]: m for c, m in zip(controls, metas, strict=True)}


def test_another_task_is_another_task(monkeypatch):
    conditioned, e = learner(mtl.SupportConditioned), episode(4)
    right = conditioned.generator(conditioned.view(e.support))["scale"]
    found = {k: v["scale"] for k, v in emitted_by_controls(conditioned, e, monkeypatch).items()}

    def nearest(scale: torch.Tensor) -> list[int]:
        return torch.cdist(scale, right).argmin(1).tolist()

    assert nearest(right) == [0, 1, 2, 3], "tasks can be told apart by their modulation"
    assert nearest(found["another task's, same family"]) == [2, 3, 0, 1], "families alternate"
    other = nearest(found["another task's support"])
    assert all(o != t for t, o in enumerate(other))
    assert torch.allclose(found["another task's support"], right[other], atol=1e-6)


@pytest.mark.parametrize("kind", [mtl.SupportConditioned, mtl.TaskCode])
def test_identity_is_the_plain_network(kind, monkeypatch):
    found, e = learner(kind), episode(4)
    found.generator.requires_grad_(False)
    for p in found.generator.parameters():
        p += 0.1
    meta = emitted_by_controls(found, e, monkeypatch)["identity"]
    modulated = found.model.features(e.support.inputs, found.generator.init(meta), meta)
    assert torch.allclose(modulated, found.backbone(e.support.inputs), atol=1e-5)


@pytest.mark.parametrize("shots", [2, 3])
def test_shuffled_labels_put_other_examples_together(shots):
    # Of few examples most orders only renumber the classes, and the control would be the method itself.
    [(_, e)] = mtl.stack_by_shape([Blobs(ways=2, shots=shots).sample(i) for i in range(4)])
    conditioned, seen = learner(mtl.SupportConditioned), []
    conditioned.generator.register_forward_pre_hook(lambda module, args: seen.append(args[0].labels))
    [shuffled] = [c for c in mtl.fewshot.controls(conditioned) if c.name.startswith("shuffled")]
    shuffled(e)
    together = [v.unsqueeze(1) == v.unsqueeze(2) for v in (seen[0], e.support.labels)]
    assert (together[0] != together[1]).flatten(1).any(1).all()
    assert torch.equal(seen[0].sort(1).values, e.support.labels.sort(1).values), "as many of each class"


def test_a_method_cannot_spoil_the_labels():
    spoil = mtl.fewshot.Method("spoil", lambda e: e.query.labels.fill_(2))
    rows = mtl.evaluate([spoil, constant(0)], Blobs(), episodes=2, progress=False).rows
    assert rows[1].accuracy == pytest.approx(1 / 3)


def test_unequal_episodes_keep_their_places():
    class Uneven:
        def sample(self, index: int) -> mtl.Episode:
            return Blobs(shots=1 + index % 2).sample(index)

    guess = mtl.fewshot.Method(
        "guess", lambda e: torch.full_like(e.query.labels, 0 if e.support.labels.shape[1] == 3 else 9)
    )
    [row] = mtl.evaluate([guess], Uneven(), episodes=5, tasks_per_chunk=4, progress=False).rows
    assert row.accuracy.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])


def test_episodes_without_a_family_are_judged_too():
    class Nameless:
        def sample(self, index: int) -> mtl.Episode:
            e = Blobs().sample(index)
            return mtl.Episode(e.support, e.query, e.ways)

    comparison = mtl.evaluate(mtl.fewshot.controls(learner(mtl.Static)), Nameless(), episodes=4, progress=False)
    assert set(comparison.families) == {"tasks"}


def test_no_task_is_left_alone_in_a_chunk():
    # 9 episodes in chunks of up to 8 were 8 and 1, and the controls failed on the last one after all the computing.
    another = mtl.fewshot.controls(learner(mtl.Static))[0]
    assert mtl.evaluate([another], Blobs(), episodes=9, tasks_per_chunk=8, progress=False).rows[0].accuracy.size == 9


def test_our_accuracy_is_that_of_adapting_and_predicting():
    found, e = learner(mtl.SupportConditioned), episode(3)
    [row] = mtl.evaluate(found, Blobs(), episodes=3, progress=False).rows
    adapted = found.adapt(e.support)
    expected = (adapted.predict(e.query.inputs) == e.query.labels).float().mean(1)
    assert row.accuracy == pytest.approx(expected.numpy())
    assert row.adapted_values == adapted.adapted_values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks_per_chunk": 0}, r"tasks_per_chunk=0"),
        ({"methods": []}, r"with 0 methods"),
        ({"methods": [constant(0), constant(0)]}, r"two methods are called \['always 0'\]"),
        ({"reference": "ours"}, r"reference='ours'.*\['always 0'\]"),
        ({"methods": [mtl.fewshot.Method("flat", lambda e: e.query.labels[0])]}, r"'flat' predicted.*\(9,\).*\(1, 9\)"),
    ],
)
def test_mistakes_are_refused_before_the_computing(arguments, message):
    options = {"methods": [constant(0)], "episodes": 1, "tasks": Blobs(), "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        mtl.evaluate(**options)


def test_baselines_are_tuned_on_the_tasks_given():
    Row = mtl.fewshot.Baseline
    right = mtl.fewshot.Method("c", lambda e: torch.arange(3).repeat_interleave(3)[None].expand(e.tasks, -1))
    good = lambda setup, v: replace(right if v == 2 else constant(0), name="a")  # noqa: E731
    table = {
        "a": Row(good, "x", 1.0, (1.0, 2.0, 3.0)),
        "b": Row(lambda setup, v: replace(constant(0), name="b"), "y", 9.0, (5.0, 6.0), ((5.0, "z"),)),
        "c": Row(lambda setup, v: right),
    }
    methods, chosen = mtl.fewshot.tune_baselines(backbone(), Blobs(), table=table, episodes=3)
    assert chosen == {"x": 2.0, "y": 5.0}, "the best of each, else the first"
    assert [(m.name, m.tuned) for m in methods] == [("a", "x=2"), ("b", "y=5"), ("c", "")]
    comparison = mtl.evaluate(methods, Blobs(), episodes=3, progress=False)
    assert [r.accuracy.mean() for r in comparison.rows] == pytest.approx([1, 1 / 3, 1])
    assert "tuned" in comparison.table()
    assert "x=2" in comparison.table()
    assert "s/task" in comparison.table()
    assert "tuned" not in mtl.evaluate(methods[2:], Blobs(), episodes=3, progress=False).table()


def test_tuning_passes_over_an_episode_once():
    b = backbone()
    calls = count_passes(b)
    mtl.fewshot.tune_baselines(
        b, Blobs(), table=mtl.fewshot.choose_baselines("ncm", "logistic", "ridge", "lda"), episodes=2
    )
    assert len(calls) == 2, "support and query, for all rows and all their settings"


def test_the_seconds_of_a_row_include_the_passes_it_shares(monkeypatch):
    b, wait = backbone(), 0.05
    forward = b.forward
    monkeypatch.setattr(b, "forward", lambda *args: (time.sleep(wait), forward(*args))[1])
    rows = mtl.fewshot.choose_baselines("ncm", "ridge", "lda")
    comparison = mtl.evaluate(mtl.baselines(b, table=rows), Blobs(), episodes=2, tasks_per_chunk=2, progress=False)
    assert all(2 * wait <= 2 * row.seconds_per_task < 4 * wait for row in comparison.rows)


def test_a_learner_sees_the_support_set_once():
    found, e = learner(mtl.SupportConditioned), episode(2)
    calls = []
    found.generator.register_forward_hook(lambda *_: calls.append(1))
    mtl.learner_method(found, steps=0)(e)
    assert len(calls) == 1
    passes = count_passes(found.backbone)
    mtl.learner_method(found, steps=0)(e)
    adapted = len(passes)
    found.adapt(e.support, steps=0).predict(e.query.inputs)
    assert len(passes) == 2 * adapted, "no pass more than adapting and predicting"


def count_passes(b: mtl.Backbone) -> list[int]:
    calls: list[int] = []
    features = b.adapter.features
    b.adapter.features = lambda *args: (calls.append(1), features(*args))[1]  # type: ignore[method-assign]
    return calls


def test_tune_needs_candidates():
    with pytest.raises(ValueError, match="no candidates"):
        mtl.fewshot.tune({}, Blobs())


def test_controls_need_no_second_task_of_each_family():
    e = episode(3)  # two of one family, one of the other
    assert all(c(e).shape == e.query.labels.shape for c in mtl.fewshot.controls(learner(mtl.SupportConditioned)))


@pytest.mark.parametrize("kind", [mtl.SupportConditioned, mtl.Static])
def test_controls_of_a_learner_on_a_readout(kind, monkeypatch):
    torch.manual_seed(0)
    b, e = backbone(sites="none", levels="all"), episode(4)
    options: dict[str, Any] = {"gate": 0.5} if kind is mtl.SupportConditioned else {}
    generator = mtl.fewshot.make_generator(kind, b, **options)
    found = mtl.MetaLearner(b, generator, mtl.Ridge(), inner_steps=0)
    cached = replace(e, support=readout(b, e.support), query=readout(b, e.query))
    own = found.generator(found.view(e.support))["scale"]
    metas: list[dict[str, torch.Tensor]] = []
    adapt = found.adapt
    spy = lambda *args, meta, **more: (metas.append(meta), adapt(*args, meta=meta, **more))[1]  # noqa: E731
    monkeypatch.setattr(found, "adapt", spy)
    for control in mtl.fewshot.controls(found):
        assert torch.equal(control(e), control(cached))
    another, same_family, shuffled, identity = (m["scale"] for m in metas[::2])
    assert (identity == 1).all()
    for misled in (another, same_family, shuffled):
        assert torch.allclose(misled, own) == (kind is mtl.Static)


def readout(b: mtl.Backbone, examples: mtl.Examples) -> mtl.Examples:
    return mtl.Examples({"readout": b(examples.inputs)}, examples.labels)
