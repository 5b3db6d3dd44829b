"""The reliability diagram and the risk-coverage curve against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtl.tools import reliability_figure
from mtl.tools.reliability import Answers
from mtl.tools.reliability_curves import risk_by_coverage

SURE = ([0.95, 0.55, 0.52], [0.94, 0.97, 0.58])
RIGHT = ([1, 0, 1], [1, 0, 0])


def answers() -> Answers:
    return Answers(tuple(map(np.array, SURE)), tuple(map(np.array, RIGHT)))


def test_risk_by_coverage_by_hand():
    coverage, risk = risk_by_coverage(answers())
    assert coverage == pytest.approx(np.arange(1, 7) / 6)
    assert risk == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4, 3 / 5, 3 / 6]), "the surest first: 0.97 is wrong"


def test_a_curve_of_many_answers_has_few_points_and_ends_with_all():
    random = np.random.default_rng(0)
    many = Answers(tuple(random.random((50, 100))), tuple(random.random((50, 100)) < 0.7))
    coverage, risk = risk_by_coverage(many)
    assert len(coverage) == 200
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - np.concatenate(many.right).mean())


def test_the_figure_draws_full_bins_and_names_the_error(tmp_path):
    found = answers()
    figure = reliability_figure({"ours": found, "ridge, $l_2$": found}, tmp_path / "r.png", "5-way 1-shot")
    assert (tmp_path / "r.png").stat().st_size > 5000
    left, beside = figure.axes
    _, ours, ridge = left.lines
    full = found.reliability.count > 0
    drawn = np.asarray(ours.get_xydata())
    assert len(drawn) == full.sum()
    assert drawn[:, 1] == pytest.approx(100 * found.reliability.accuracy[full])
    assert ours.get_linestyle() != ridge.get_linestyle(), "apart in print too"
    assert np.asarray(beside.lines[0].get_ydata()) == pytest.approx(100 * risk_by_coverage(found)[1])
    ece, half = (100 * value for value in found.ece)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [f"{name}, ECE {ece:.1f} ± {half:.1f} %" for name in ("ours", "ridge, $l_2$")]


@pytest.mark.parametrize("count", [0, 6])
def test_none_or_too_many_are_refused(count, tmp_path):
    with pytest.raises(ValueError, match=f"one to 5 methods, not {count}"):
        reliability_figure({str(i): answers() for i in range(count)}, tmp_path / "r.png")
