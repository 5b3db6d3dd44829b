"""Calibration error, risk and coverage, and how a comparison carries them from a method to a table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_kept_results import Counted
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import Method, choose_baselines
from mtl.fewshot.evaluation.results import FILE
from mtl.tools.reliability import Answers


def random_answers(episodes: int = 40, queries: int = 25, lie: float = 0.0, seed: int = 0) -> Answers:
    """Answers whose probabilities are right, but for ``lie``."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.2, 1, (episodes, queries))
    right = rng.uniform(size=p.shape) < p
    return Answers(tuple(np.clip(p + lie, 0, 1)), tuple(right))


def test_calibration_error_is_the_mean_distance_of_probability_and_accuracy():
    answers = Answers((np.array([0.9, 0.9, 0.9]), np.array([0.31, 0.99])), (np.array([1, 1, 0]), np.array([0, 1])))
    by_hand = (3 * abs(0.9 - 2 / 3) + 1 * 0.31 + 1 * 0.01) / 5
    assert answers.ece[0] == pytest.approx(by_hand)
    r = answers.reliability
    assert r.ece == answers.ece[0]
    assert r.count.sum() == 5
    assert r.edges.tolist() == pytest.approx(np.linspace(0, 1, 16).tolist())
    assert (r.confidence[13], r.accuracy[13], r.count[13]) == pytest.approx((0.9, 2 / 3, 3))
    assert np.isnan(r.accuracy[0])
    assert Answers((np.array([1.0]),), (np.array([1]),)).reliability.count[14] == 1, "1 is in the last bin"


def test_honest_probabilities_have_little_error_and_lies_show():
    assert random_answers(400).ece[0] < 0.02
    assert random_answers(400, lie=-0.1).ece[0] == pytest.approx(0.1, abs=0.02)


def test_the_interval_is_as_wide_as_the_error_spreads():
    found = [random_answers(lie=-0.1, seed=seed).ece for seed in range(60)]
    spread = np.std([error for error, _ in found])
    assert np.mean([half for _, half in found]) == pytest.approx(1.96 * spread, rel=0.3)


def test_the_surest_answers_are_kept_and_the_area_is_over_all_coverages():
    answers = Answers(
        (np.array([0.9, 0.2, 0.5, 0.7]), np.array([0.3, 0.8])), (np.array([1, 0, 0, 1]), np.array([1, 0]))
    )
    assert answers.accuracy_at(0.5).tolist() == [1, 0]
    assert answers.accuracy_at(0.6).tolist() == pytest.approx([2 / 3, 0.5])
    assert answers.accuracy_at(1).tolist() == [0.5, 0.5]
    assert answers.aurc.tolist() == pytest.approx([np.mean([0, 0, 1 / 3, 1 / 2]), np.mean([1, 1 / 2])])
    ten = Answers((np.linspace(0, 1, 10),), (np.arange(10) > 0,))
    assert ten.accuracy_at(0.9).tolist() == [1.0]


def test_wrong_answers_are_refused():
    for confidence, right in (([0.5], [1, 0]), ([], []), ([1.5], [1]), ([np.nan], [1])):
        with pytest.raises(ValueError, match="answers: expected"):
            Answers((np.array(confidence),), (np.array(right),))


def test_json_restores_answers_and_parts_join():
    answers = random_answers(3)
    again = Answers.from_json(json.loads(json.dumps(answers.to_json())))
    assert again.ece == answers.ece
    joined = Answers.joined([answers.of_episodes([2]), answers.of_episodes([0, 1])])
    assert joined is not None
    assert joined.of_episodes([1, 2, 0]).aurc.tolist() == answers.aurc.tolist()
    assert Answers.joined([answers, None]) is None


def learner() -> mtl.MetaLearner:
    torch.manual_seed(0)
    return mtl.MetaLearner(backbone(sites="none", levels="all"))


def test_methods_with_logits_have_probabilities_and_the_same_labels():
    made = learner()
    methods = [
        mtl.learner_method(made),
        mtl.learner_method(made, "chosen", cross_validate=True),
        *mtl.baselines(
            made.backbone, table=choose_baselines("ncm", "logistic", "ridge", "ridge_all", "lda", "head"), steps=2
        ),
    ]
    [(_, episode)] = mtl.stack_by_shape([Blobs(shots=3).sample(i) for i in range(2)])
    for method in methods:
        labels, confidence = method.answers(episode)
        assert torch.equal(labels, method(episode))
        assert torch.equal(labels, method.predict(episode))
        assert confidence is not None
        assert method.logits is not None
        chances = method.logits(episode).double().softmax(-1)
        torch.testing.assert_close(confidence, chances.gather(-1, labels.unsqueeze(-1)).squeeze(-1))
        assert float(confidence.min()) > 1 / 3 - 1e-6
    adapted = made.adapt(episode.support, cross_validate=True)
    _, confidence = methods[1].answers(episode)
    assert confidence is not None
    torch.testing.assert_close(
        confidence.float(), adapted.predict_proba(episode.query.inputs).amax(-1), atol=1e-5, rtol=1e-5
    )


def test_two_classes_of_logistic_regression_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    from mtl.fewshot.baselines.classifiers import logistic_logits

    generator = torch.Generator().manual_seed(0)
    seen, asked = torch.randn(1, 10, 3, generator=generator), torch.randn(1, 40, 3, generator=generator)
    labels = torch.arange(10)[None] % 2
    fit = LogisticRegression(C=2.0, max_iter=1000).fit(seen[0].numpy(), labels[0].numpy())
    logits = logistic_logits(seen, labels, asked, 2.0, reduce=False)[0]
    assert logits.argmax(-1).tolist() == fit.predict(asked[0].numpy()).tolist()
    assert logits.softmax(-1).numpy() == pytest.approx(fit.predict_proba(asked[0].numpy()), abs=1e-5)


def test_what_is_not_finite_has_no_probability():
    nothing = Method.of_logits("nothing", lambda e: torch.full((*e.query.labels.shape, e.ways), torch.nan))
    with pytest.warns(UserWarning, match="not finite"):
        found = mtl.evaluate([nothing], Blobs(), episodes=2, progress=False)
    assert found.rows[0].answers is not None
    assert found.rows[0].answers.ece[0] == 0


def guess(name: str = "guess") -> Method:
    def logits(episode: mtl.Episode) -> torch.Tensor:
        sums = episode.query.inputs.tensor.flatten(2)[..., :3]
        return 5 * sums

    return Method.of_logits(name, logits, identity=lambda: {})


def test_a_comparison_keeps_probabilities_in_the_order_of_episodes(tmp_path):
    options = {"episodes": 7, "tasks_per_chunk": 3, "progress": False}
    whole = mtl.evaluate([guess()], Counted(), **options)
    kept = mtl.evaluate([guess()], Counted(), folder=tmp_path, **options)
    again = mtl.evaluate([guess()], Counted(), folder=tmp_path, **options)
    kept.to_json(tmp_path / "x.json")
    for found in (kept, again, mtl.Comparison.from_json(tmp_path / "x.json")):
        [row], [expected] = found.rows, whole.rows
        assert row.answers is not None
        assert expected.answers is not None
        assert row.answers.to_json() == expected.answers.to_json()
        assert [r.mean() for r in row.answers.right] == pytest.approx(row.accuracy.tolist())
    by_hand = guess().answers(Counted().sample(4))[1]
    assert by_hand is not None
    assert whole.rows[0].answers is not None
    assert whole.rows[0].answers.confidence[4] == pytest.approx(by_hand[0].numpy(), abs=1e-4)


def test_kept_results_without_probabilities_are_measured_again(tmp_path):
    options = {"episodes": 3, "progress": False, "folder": tmp_path}
    mtl.evaluate([replace(guess(), logits=None)], Counted(), **options)
    assert "confidence" not in (tmp_path / FILE).read_text()
    tasks = Counted()
    [row] = mtl.evaluate([guess()], tasks, **options).rows
    assert tasks.sampled == [0, 1, 2]
    assert row.answers is not None


def comparison() -> mtl.Comparison:
    names = ("a",) * 20 + ("b",) * 20
    answers = random_answers()
    accuracy = np.array([r.mean() for r in answers.right])
    row = mtl.tools.MethodResult("sure", "ours", accuracy, 0.1, 3, answers=answers)
    return mtl.Comparison("test", names, (row, replace(row, method="silent", answers=None)), "sure")


def test_the_table_of_probabilities_names_those_that_have_them():
    found = comparison()
    text = found.probability_table()
    answers = found.rows[0].answers
    assert answers is not None
    [line] = [line for line in text.splitlines() if line.startswith("sure")]
    assert f"{100 * answers.ece[0]:.1f} ± {100 * answers.ece[1]:.1f}" in line
    assert f"{100 * answers.accuracy_at().mean():.1f} ±" in line
    assert "silent" not in text
    assert "| sure" in found.probability_table(markdown=True)
    assert replace(found, rows=found.rows[1:], reference="silent").probability_table() == ""
    blocks = replace(found, unseen=("b",)).probability_table()
    assert "seen families, 20 episodes" in blocks
    assert "unseen families, 20 episodes" in blocks
    [part] = [p for name, p in found.by_family().items() if name == "b"]
    assert part.rows[0].answers is not None
    assert part.rows[0].answers.to_json() == answers.of_episodes(range(20, 40)).to_json()
    assert found.rows[0].reliability is not None
    assert found.rows[1].reliability is None


def test_csv_has_the_columns_where_there_are_probabilities(tmp_path):
    found = comparison()
    found.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["ece"]) == found.rows[0].answers.ece[0]  # pyright: ignore[reportOptionalMemberAccess]
    assert rows[1]["ece"] == ""
    replace(found, rows=found.rows[1:], reference="silent").to_csv(tmp_path / "y.csv")
    assert "ece" not in (tmp_path / "y.csv").read_text()


def test_files_of_before_load(tmp_path):
    found = comparison()
    found.to_json(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    for row in content["rows"]:
        del row["answers"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    loaded = mtl.Comparison.from_json(tmp_path / "x.json")
    assert [r.answers for r in loaded.rows] == [None, None]
    assert loaded.table() == found.table()
    content["rows"][0]["answers"] = {"confidence": [[2.0]], "right": ["1"]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a saved comparison"):
        mtl.Comparison.from_json(tmp_path / "x.json")
