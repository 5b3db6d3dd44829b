"""Damaged and odd files are read right or refused in one line: a part of stress_files.py, and slowly all of it."""

from __future__ import annotations

import odd_images
import odd_tables
import pytest
import stress_files


@pytest.mark.parametrize("cases", [odd_images.cases, odd_tables.cases], ids=["images", "tables"])
def test_some_odd_files(tmp_path, cases):
    counts, failed = stress_files.run(cases()[::4], tmp_path)
    assert not failed
    assert sum(counts.values()) > 30


@pytest.mark.slow
def test_all_odd_files(tmp_path):
    cases = stress_files.all_cases()
    assert len(cases) >= 200
    assert len({(case.kind, case.name) for case in cases}) == len(cases)
    _, failed = stress_files.run(cases, tmp_path)
    assert not failed
