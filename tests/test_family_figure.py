"""The figure of methods family by family."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from matplotlib.patches import Rectangle

import mtl
from mtl.tools import MethodResult, family_figure, paired_difference


def comparison() -> mtl.Comparison:
    random = np.random.default_rng(0)
    families = tuple(name for name in ("colour", "hand", "sign") for _ in range(5))
    accuracy = {
        name: random.uniform(0, 0.5, 15) + more for name, more in (("ours", 0.3), ("ridge", 0.0), ("static", 0.1))
    }
    accuracy["ours"][5:10] = accuracy["ridge"][5:10]  # no lead on "hand"
    kinds = ("ours", "baseline", "control")
    made = [
        MethodResult(name, kind, values, 0.1, 10) for (name, values), kind in zip(accuracy.items(), kinds, strict=True)
    ]
    return mtl.Comparison("5-way 5-shot", families, tuple(made), "ours", unseen=("hand",))


def names_on(axis) -> list[str]:
    return [label.get_text() for label in axis.get_yticklabels()]


def test_seen_and_unseen_families_apart_the_largest_lead_on_top(tmp_path):
    found = comparison()
    figure = family_figure(found, tmp_path / "families.png", ["ours", "ridge", "static"])
    assert (tmp_path / "families.png").stat().st_size > 5000
    panel, beside = figure.axes
    leads = {
        name: paired_difference(*(100 * part.row(m).accuracy for m in ("ours", "ridge")))
        for name, part in found.by_family().items()
    }
    order = [*sorted(("colour", "sign"), key=lambda k: -leads[k][0]), "hand"]
    assert names_on(panel) == order
    assert [text.get_text() for text in panel.texts] == ["seen families", "unseen families"]
    assert panel.get_ylim()[0] > panel.get_ylim()[1], "the first one is on top"
    bars = [bar for bar in beside.patches if isinstance(bar, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([leads[k][0] for k in order])
    spans = [line.get_segments()[0][:, 0] for line in beside.collections]
    assert [(b - a) / 2 for a, b in spans] == pytest.approx([leads[k][1] for k in order])
    assert [text.get_text() for text in beside.texts] == [f"{leads[k][0]:+.1f}" for k in order]


def test_some_families_and_wrong_methods(tmp_path):
    found = comparison()
    figure = family_figure(found, tmp_path / "two.svg", ["ours", "ridge"], ["sign", "colour"])
    assert set(names_on(figure.axes[0])) == {"sign", "colour"}
    assert not figure.axes[0].texts, "one group has no heading"
    with pytest.raises(ValueError, match="two to 5 methods, not 1"):
        family_figure(found, tmp_path / "one.png", ["ours"])


def test_of_very_many_families_the_extremes(tmp_path):
    families = tuple(f"$family_{i}" for i in range(200) for _ in range(2))
    lead = np.arange(400) // 2 / 1000
    rows = (MethodResult("ours", "ours", 0.5 + lead, 1, 1), MethodResult("ridge", "baseline", 0.5 + 0 * lead, 1, 1))
    figure = family_figure(mtl.Comparison("many", families, rows, "ours"), tmp_path / "many.svg", ["ours", "ridge"])
    expected = [f"$family_{i}" for i in [*range(199, 169, -1), *range(29, -1, -1)]]
    assert names_on(figure.axes[0]) == expected
    assert "140 families between are not shown" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_full_disk_leaves_the_figure_that_was_there(suffix: str, tmp_path):
    path = tmp_path / f"families.{suffix}"
    path.write_bytes(b"the one before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # like a full disk, for files beyond this size
    try:
        with pytest.raises(OSError, match=rf"families\.{suffix} could not be written: File too large.*make room"):
            family_figure(comparison(), path, ["ours", "ridge"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the one before"]
