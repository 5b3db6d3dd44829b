"""reweighting.py: weights of examples are learned through the inner loop, and not without it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

import mtl


def test_learned_weights_beat_equal_ones_and_first_order_is_zero(tmp_path):
    import reweighting

    config = reweighting.Config(seeds=3, training=300, outer_steps=12, steps=60, outer_lr=0.4, out=str(tmp_path))
    with pytest.warns(mtl.metagrad.StructuralZeroWarning, match="FirstOrder gives exactly zero"):
        rows = {row["method"]: row for row in reweighting.main(config)}
    assert rows["windowed"]["gain"] > rows["windowed"]["gain_half_width"]
    assert rows["windowed"]["auc"] > 0.7
    assert rows["windowed"]["accuracy"] == pytest.approx(rows["exact"]["accuracy"], abs=0.5)
    assert rows["first-order"]["gain"] == 0
    assert rows["first-order"]["auc"] == 0.5
    assert len(list(csv.DictReader((tmp_path / "reweighting.csv").open()))) == len(rows)
    assert (tmp_path / "reweighting.png").stat().st_size > 10_000


def test_reweighting_needs_meta_gradients_alone():
    import reweighting

    assert set(re.findall(r"^import (mtl\S*)|^from (mtl\S*)", Path(reweighting.__file__).read_text(), re.M)) == {
        ("mtl.metagrad", ""),
        ("", "mtl.cli.answers"),  # the command line
        ("", "mtl.cli.options"),
        ("", "mtl.tools.files"),  # to write what came out
    }
