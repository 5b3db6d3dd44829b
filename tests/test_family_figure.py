"""The figure of methods family by family."""

from __future__ import annotations

import resource

import numpy as np
import pytest

import mtl
from mtl.tools import MethodResult, family_figure


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


def test_a_row_per_family_the_largest_lead_on_top(tmp_path):
    found = comparison()
    figure = family_figure(found, tmp_path / "families.png", ["ours", "ridge", "static"])
    assert (tmp_path / "families.png").stat().st_size > 5000
    [panel] = figure.axes
    leads = {
        name: 100 * (part.row("ours").accuracy - part.row("ridge").accuracy).mean()
        for name, part in found.by_family().items()
    }
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == [f"{k} (unseen)" if k == "hand" else k for k in sorted(leads, key=lambda k: leads[k])]
    assert [text.get_text() for text in panel.texts] == [
        f"{leads[k]:+.1f}" for k in sorted(leads, key=lambda k: leads[k])
    ]


def test_some_families_and_wrong_methods(tmp_path):
    found = comparison()
    figure = family_figure(found, tmp_path / "two.svg", ["ours", "ridge"], ["sign", "hand"])
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {"sign", "hand (unseen)"}
    with pytest.raises(ValueError, match="two to 5 methods, not 1"):
        family_figure(found, tmp_path / "one.png", ["ours"])


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
