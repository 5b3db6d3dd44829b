"""The benchmark of serving runs at the smallest size; all ways give the same logits, or it says which does not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("peft")
serve_tasks = pytest.importorskip("serve_tasks")


def test_all_ways_of_serving_agree(tmp_path: Path, monkeypatch):
    small = {"networks": ["tiny"], "tasks": 3, "batch": 6, "saved": 3, "repeats": 1, "device": "cpu"}
    config = serve_tasks.Config(**small, out=str(tmp_path))
    rows = serve_tasks.main(config)
    assert {(row["question"], row["way"]) for row in rows} == {
        *((question, way) for question in ("mixed", "fan-out") for way in ("server", "loop", "grouped", "arrival")),
        ("mixed", "plain"),
        ("fan-out, readout", "server"),
        ("fan-out, readout", "loop"),
    }
    assert max(row["off"] for row in rows) < 1e-5
    [saved] = csv.DictReader((tmp_path / "saved.csv").open())
    numbers = 3 * (5 * 64 + 5 + 2 * serve_tasks.network("tiny", tmp_path, config).modulation_width)
    assert float(saved["mib_of_tensors"]) == round(4 * numbers / 2**20, 3) > 0
    assert float(saved["seconds_to_load"]) > 0
    fill = serve_tasks.Switching._fill
    monkeypatch.setattr(serve_tasks.Switching, "_fill", lambda self, name, part: name == "1" or fill(self, name, part))
    with pytest.raises(RuntimeError, match="grouped on tiny: logits differ"):
        serve_tasks.main(config)
