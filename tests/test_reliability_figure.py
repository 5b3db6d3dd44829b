"""Reliability diagrams and risk-coverage curves against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtl.tools.reliability_figure import reliability_figure, reliability_of

SURE = [0.95, 0.55, 0.52, 0.93, 0.91, 0.58]
RIGHT = [1, 0, 1, 1, 0, 0]


def test_bins_ece_and_risk_by_hand():
    found = reliability_of(SURE, RIGHT)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 3]
    assert found.confidence[[5, 9]] == pytest.approx([0.55, 0.93])
    assert found.accuracy[[5, 9]] == pytest.approx([1 / 3, 2 / 3])
    assert found.expected_calibration_error == pytest.approx((0.55 - 1 / 3 + 0.93 - 2 / 3) / 2)
    assert found.coverage == pytest.approx(np.arange(1, 7) / 6)
    assert found.risk == pytest.approx([0, 0, 1 / 3, 2 / 4, 3 / 5, 3 / 6]), "the surest first: right, right, wrong ..."


def test_certainty_is_in_the_last_bin():
    assert reliability_of([1.0, 1.0], [1, 0], bins=5).count.tolist() == [0, 0, 0, 0, 2]


def test_the_figure_draws_full_bins_and_names_the_error(tmp_path):
    curve = reliability_of(SURE, RIGHT)
    figure = reliability_figure({"ours": curve, "ridge, $l_2$": curve}, tmp_path / "r.png", "5-way 1-shot")
    assert (tmp_path / "r.png").stat().st_size > 5000
    left, beside = figure.axes
    _, ours, ridge = left.lines
    assert ours.get_xydata().ravel() == pytest.approx([55, 100 / 3, 93, 200 / 3])
    assert ours.get_linestyle() != ridge.get_linestyle(), "apart in print too"
    assert beside.lines[0].get_ydata() == pytest.approx(100 * curve.risk)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ours, ECE 24.0 %", "ridge, $l_2$, ECE 24.0 %"]


@pytest.mark.parametrize("count", [0, 6])
def test_none_or_too_many_are_refused(count, tmp_path):
    with pytest.raises(ValueError, match=f"one to 5 methods, not {count}"):
        reliability_figure({str(i): reliability_of(SURE, RIGHT) for i in range(count)}, tmp_path / "r.png")
