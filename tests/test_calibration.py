"""Temperatures, thresholds and what is kept of them: from left-out logits to answers."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from test_choosing import ONE_SHOT, UNEQUAL, episode, learner
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import Calibration
from mtl.fewshot.calibration import LeftOut, calibrations_of, temperatures
from mtl.fewshot.choosing import candidates, folds


def noisy(factor: float, m: int = 400, ways: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(2, m, ways)`` that are ``factor`` times too large, and labels drawn with the right probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, m, ways, generator=generator)
    labels = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(2, m)
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_made_answers_too_sure(factor):
    found = temperatures(*noisy(factor, 4000))
    assert found.tolist() == pytest.approx([factor] * 2, rel=0.1)


def test_the_temperature_is_where_the_objective_is_least():
    logits, labels = noisy(3.0, 25)
    grid = torch.logspace(-2, 2, 2001, base=math.e, dtype=torch.float64)
    for prior in (1.0, 10.0):
        found = temperatures(logits, labels, prior)
        for t in range(2):
            losses = [
                float(F.cross_entropy(b * logits[t].double(), labels[t], reduction="sum")) + prior * (b - math.log(b))
                for b in grid.tolist()
            ]
            assert float(found[t]) == pytest.approx(1 / float(grid[losses.index(min(losses))]), rel=3e-3)


def test_few_examples_move_the_temperature_little_and_one_task_does_not_move_another():
    logits, labels = noisy(4.0)
    few = float(temperatures(logits[:1, :5], labels[:1, :5])[0])
    many = float(temperatures(logits[:1], labels[:1])[0])
    assert abs(math.log(few)) < 0.3 * math.log(many)
    together = temperatures(torch.cat([logits, 5 * logits]), torch.cat([labels, labels]))
    torch.testing.assert_close(together[:2], temperatures(logits, labels))


def test_odd_logits_leave_the_temperature_finite():
    logits, labels = noisy(1.0, 20)
    spoilt = logits.clone()
    spoilt[0, 3] = torch.nan
    expected = temperatures(
        torch.cat([logits[:1, :3], logits[:1, 4:]], 1), torch.cat([labels[:1, :3], labels[:1, 4:]], 1)
    )
    torch.testing.assert_close(temperatures(spoilt, labels)[:1], expected)
    always_right = 100.0 * F.one_hot(labels, 5)
    assert bool(temperatures(always_right, labels).isfinite().all())
    [first, _] = calibrations_of(LeftOut(spoilt, labels), 2)
    assert first.left_out == 20
    assert first.confidences[0] == pytest.approx(0.2)


def test_reject_costs_at_most_the_share_that_it_names():
    """Left-out examples and new ones alike: of many draws, so many new ones are less sure than the threshold."""
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(4000, 26, generator=generator).double()
    for reject in (0.1, 0.3, 0.5):
        lost = 0
        for *left_out, new in confidences.tolist():
            lost += new < Calibration(1.0, tuple(sorted(left_out))).threshold(reject)
        share = math.floor(26 * reject) / 26
        assert share <= reject
        assert lost / 4000 == pytest.approx(share, abs=0.025)
    nine = Calibration(1.0, tuple(i / 10 for i in range(1, 10)))
    assert nine.threshold(0.1) == 0.1
    assert nine.threshold(0.3) == 0.3
    assert nine.threshold(0.99) == 0.9


def test_what_cannot_be_rejected_is_told():
    with pytest.raises(ValueError, match=r"reject=0.1 with 4 left-out examples: expected at least 0.2, or more label"):
        Calibration(1.0, (0.2, 0.3, 0.4, 0.5)).threshold(0.1)
    with pytest.raises(ValueError, match="a class has a single example, so none was left out"):
        Calibration(1.0).threshold(0.1)
    for share in (0.0, 1.0, -1.0, math.nan, 10):
        with pytest.raises(ValueError, match="expected a share of items, more than 0 and less than 1"):
            Calibration(1.0, (0.5,)).threshold(share)


def test_json_restores_it_and_nothing_else_passes():
    found = Calibration(1.25, (0.1, 1 / 3, 1.0))
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    good = found.to_json()
    for wrong in (
        {},
        good | {"temperature": 0.0},
        good | {"temperature": math.nan},
        good | {"temperature": "hot"},
        good | {"temperature": None},
        good | {"confidences": [0.5, 0.4]},
        good | {"confidences": [2.0]},
        good | {"confidences": 3},
    ):
        with pytest.raises(ValueError, match=r"alibration|could not convert"):
            Calibration.from_json(wrong)


@pytest.mark.parametrize("cross_validate", [True, False])
def test_a_learner_calibrates_on_answers_to_what_it_did_not_see(cross_validate):
    """Against adapting to every fold of every task alone."""
    made, e = learner(), episode()
    adapted = made.adapt(e.support, cross_validate=cross_validate, calibrate=True)
    split = folds(UNEQUAL, 3)
    assert split is not None
    images = e.support.inputs.flatten()
    found, right = [], []
    for i, (stay, out) in enumerate(zip(*split, strict=True)):
        support = mtl.Examples(images.take(stay).with_task_axis(), UNEQUAL.flatten()[stay][None])
        emitted = made.adapt(support).meta
        tried = candidates(made.generator, emitted) if cross_validate else {"generator": emitted}
        weights = adapted.choice.weights[i // 2] if adapted.choice else torch.ones(1)
        asked = images.take(out).with_task_axis()
        logits = [made.adapt(support, meta=meta).logits(asked)[0] for meta in tried.values()]
        found.append(sum(w * z for w, z in zip(weights, logits, strict=True)))
        right.append(UNEQUAL.flatten()[out])
    stacked = torch.stack(found).view(2, 6, 3), torch.stack(right).view(2, 6)
    for mine, expected in zip(adapted.calibrations, calibrations_of(LeftOut(*stacked), 2), strict=True):
        assert mine.temperature == pytest.approx(expected.temperature, rel=1e-3)
        assert mine.confidences == pytest.approx(expected.confidences, abs=1e-3)
    assert adapted.calibration(1) == adapted.calibrations[1]
    assert (adapted.choice is None) == (not cross_validate)


def test_answers_stay_the_same_and_probabilities_follow_the_temperature():
    made, e = learner(), episode()
    plain, sure = made.adapt(e.support), made.adapt(e.support, calibrate=True)
    inputs = e.query.inputs
    assert torch.equal(plain.logits(inputs), sure.logits(inputs))
    assert torch.equal(plain.predict(inputs), sure.predict(inputs))
    assert torch.equal(plain.predict_proba(inputs), plain.logits(inputs).softmax(-1))
    assert plain.calibration() is None
    for t in range(2):
        temperature = sure.calibrations[t].temperature
        assert temperature != 1
        expected = (sure.logits(inputs)[t] / temperature).softmax(-1)
        torch.testing.assert_close(sure.predict_proba(inputs)[t], expected)
    with pytest.raises(ValueError, match="left-out examples need a start of their own"):
        made.adapt(e.support, meta=plain.meta, calibrate=True)


def test_with_one_example_of_a_class_there_is_no_threshold():
    made, e = learner(), episode(ONE_SHOT)
    adapted = made.adapt(e.support, calibrate=True)
    assert [(c.temperature, c.left_out) for c in adapted.calibrations] == [(1.0, 0)] * 2
    with pytest.raises(ValueError, match="a class has a single example"):
        adapted.predict(e.query.inputs, reject=0.5)


@pytest.fixture(scope="module")
def sure() -> mtl.Adapted:
    b = backbone(sites="none", levels="all")
    classes = {name: list(torch.rand(4, 1, 16, 16)) for name in ("scratch", "dent", "fine")}
    torch.manual_seed(0)
    return mtl.MetaLearner(b).adapt(classes, cross_validate=True)


def test_reject_answers_none_below_the_threshold(sure):
    images = list(torch.rand(40, 1, 16, 16))
    calibration = sure.calibration()
    assert calibration is not None
    threshold = calibration.threshold(0.5)
    probabilities = sure.predict_proba(images).amax(1).tolist()
    named = sure.predict(images)
    expected = [None if p < threshold else name for p, name in zip(probabilities, named, strict=True)]
    assert None in expected
    assert set(expected) != {None}
    assert sure.predict(images, reject=0.5) == expected
    assert [p.label for p in sure.predict_each(images, reject=0.5)] == expected
    tensors = sure.model.backbone.preprocess(images)[None]
    numbers = [-1 if name is None else sure.class_names.index(name) for name in expected]
    assert sure.predict(tensors, reject=0.5)[0].tolist() == numbers


def test_the_first_of_the_top_is_the_prediction(sure):
    images = list(torch.rand(6, 1, 16, 16))
    top, probabilities = sure.predict_top(images, 2), sure.predict_proba(images)
    assert [row[0].label for row in top] == sure.predict(images)
    for row, each in zip(top, probabilities, strict=True):
        assert [p.probability for p in row] == pytest.approx(each.sort(descending=True).values[:2].tolist())
        assert [sure.class_names.index(p.label) for p in row] == each.topk(2).indices.tolist()
    assert [len(row) for row in sure.predict_top(images, 9)] == [3] * 6
    with pytest.raises(ValueError, match=r"predict_top\(k=0\): expected at least 1"):
        sure.predict_top(images, 0)


def test_rows_have_a_column_for_every_class(sure):
    images = list(torch.rand(70, 1, 16, 16))
    rows = list(sure.predict_rows(images, reject=0.5, batch_size=32))
    assert list(rows[0]) == ["label", "probability", "p(scratch)", "p(dent)", "p(fine)"]
    assert [row["label"] for row in rows] == sure.predict(images, reject=0.5)
    for row, each in zip(rows, sure.predict_proba(images), strict=True):
        assert [row[f"p({name})"] for name in sure.class_names] == pytest.approx(each.tolist(), abs=1e-5)
        assert row["probability"] == max(row[f"p({name})"] for name in sure.class_names)
    numbered = mtl.MetaLearner(backbone()).adapt(Blobs().sample(0).support)
    [row] = numbered.predict_rows(torch.rand(1, 16, 16))
    assert [*row][2:] == ["p(0)", "p(1)", "p(2)"]


def test_a_saved_task_has_the_same_probabilities_and_thresholds(sure, tmp_path):
    images = list(torch.rand(20, 1, 16, 16))
    sure.save(tmp_path / "x.mtl")
    task = mtl.load_task(tmp_path / "x.mtl", sure.model.backbone)
    assert task.calibration == sure.calibration()
    torch.testing.assert_close(task.predict_proba(images), sure.predict_proba(images), atol=1e-5, rtol=1e-4)
    assert task.predict(images, reject=0.5) == sure.predict(images, reject=0.5)
    assert [[p.label for p in row] for row in task.predict_top(images)] == [
        [p.label for p in row] for row in sure.predict_top(images)
    ]
