"""Damaged and odd files are read right or refused in one line: a part of stress_files.py, and slowly all of it."""

from __future__ import annotations

import odd_checkpoints
import odd_images
import odd_tables
import pytest
import stress_files

SOME = {
    "images": odd_images.cases,
    "tables": odd_tables.cases,
    "results": odd_checkpoints.json_files,
    "checkpoints": odd_checkpoints.checkpoints,
}


@pytest.mark.parametrize("kind", SOME)
def test_some_odd_files(tmp_path, kind):
    counts, failed = stress_files.run(list(SOME[kind]())[::4], tmp_path)
    assert not failed
    assert sum(counts.values()) > 5


@pytest.mark.slow
def test_all_odd_files(tmp_path):
    cases = stress_files.all_cases()
    assert len(cases) >= 200
    assert len({(case.kind, case.name) for case in cases}) == len(cases)
    _, failed = stress_files.run(cases, tmp_path)
    assert not failed
