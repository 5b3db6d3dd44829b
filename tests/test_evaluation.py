"""All methods see the same episodes and no query label; controls are what they say; baselines are as elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tiny import Blobs, backbone

import mtl


def episode(n: int = 4) -> mtl.Episode:
    [(_, e)] = mtl.stacked([Blobs().sample(i) for i in range(n)])
    return e


def learner(kind: type) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    options = {"gate": 0.5} if kind is mtl.SupportConditioned else {}
    return mtl.MetaLearner(b, kind(b.sites, b.width, **options), inner_steps=2)


def test_no_method_sees_a_query_label():
    seen = []
    spy = mtl.Method("spy", lambda e: (seen.append(e.query.labels.clone()), e.query.labels)[1])
    comparison = mtl.evaluate([spy], Blobs(), episodes=3, progress=False)
    assert not any(s.any() for s in seen)
    assert comparison.rows[0].accuracy.mean() == pytest.approx(1 / 3)


def test_the_same_episodes_for_all_and_whatever_the_chunks():
    guess = mtl.Method("a", lambda e: e.query.inputs.sum((2, 3, 4)).long() % e.ways)
    other = mtl.Method("b", guess.predict)
    whole = mtl.evaluate([guess, other], Blobs(), episodes=7, progress=False)
    parts = mtl.evaluate([guess], Blobs(), episodes=7, tasks_per_chunk=2, progress=False)
    assert (whole.rows[0].accuracy == whole.rows[1].accuracy).all()
    assert (whole.rows[0].accuracy == parts.rows[0].accuracy).all()
    assert whole.families[:3] == ("family 0", "family 1", "family 0")


def test_controls_mislead_the_conditioned_generator_and_not_the_static_one():
    e = episode(8)
    conditioned, static = learner(mtl.SupportConditioned), learner(mtl.Static)
    for control, same in zip(mtl.controls(conditioned), mtl.controls(static), strict=True):
        assert control.kind == "control"
        assert torch.equal(same(e), mtl.static_control(static)(e)), "a static generator ignores what it is shown"
    metas = []
    conditioned.adapt = lambda support, steps=None, meta=None: metas.append(meta) or _Guess()  # type: ignore[method-assign]
    for method in (mtl.ours(conditioned), *mtl.controls(conditioned)):
        method(e)
    own, *misled = metas
    assert not any(torch.allclose(own["scale"], m["scale"]) for m in misled)
    assert (misled[-1]["scale"] == 1).all()


class _Guess:
    def predict(self, inputs):
        return torch.zeros(inputs.shape[:2], dtype=torch.long)


@pytest.mark.parametrize("i", range(6))
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
    right = mtl.Method("r", lambda e: torch.arange(3).repeat_interleave(3)[None].expand(e.tasks, -1))
    wrong = mtl.Method("w", lambda e: torch.zeros_like(e.query.labels))
    best, scores = mtl.tune({0.1: wrong, 0.2: right}, Blobs(), episodes=4)
    assert best == 0.2
    assert scores[0.2] == 1.0


def test_errors():
    with pytest.raises(ValueError, match="episodes=0"):
        mtl.evaluate(learner(mtl.Static), Blobs(), episodes=0)
    with pytest.raises(ValueError, match="tasks_per_chunk"):
        mtl.controls(learner(mtl.Static))[0](episode(1))
