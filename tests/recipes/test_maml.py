"""maml.py trains with every estimator, and goes on where it was stopped."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial

import maml
import pytest
import torch
from helpers import maml_results
from small_data import pictures

import mtl

LITTLE_MAML = {
    "ways": 2, "queries": 2, "inner_steps": 2, "window": 2, "filters": 4, "tasks": 2, "steps": 2, "test_tasks": 3,
    "validation_tasks": 2, "points": 2,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
def test_maml_with_every_estimator(tmp_path):
    config = maml.Config(
        **LITTLE_MAML, inner=mtl.metagrad.InnerOptions(inner_momentum=0.5), learned_sizes="layer", out=str(tmp_path)
    )
    with pytest.warns(mtl.metagrad.StructuralZeroWarning, match="Reptile gives exactly zero for .*log_lr"):
        rows = {r["method"]: r for r in maml.main(config)}
    assert len(rows) == 11
    assert rows["exact"]["MiB"] < rows["unrolled, exact"]["MiB"]
    assert rows["unrolled, exact"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert rows["first-order"]["pulls"] == 0
    assert all(rows["exact"][f"difference, {c}"] == 0 for c in maml_results.CONDITIONS)
    assert rows["first-order"]["step, equal time"] >= rows["first-order"]["step, equal steps"]
    assert (tmp_path / "maml.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((tmp_path / "maml.csv").open()))) == len(rows)
    # What is finished is read, not trained again; what is missing is made anew; other settings are refused.
    (tmp_path / "Reptile.json").unlink()
    kept = (tmp_path / "first-order.json").stat().st_mtime_ns
    again = {r["method"]: r for r in maml.main(config)}
    assert {k: r for k, r in again.items() if k != "Reptile"} == {k: r for k, r in rows.items() if k != "Reptile"}
    assert (tmp_path / "first-order.json").stat().st_mtime_ns == kept
    assert (tmp_path / "Reptile.json").is_file()
    with pytest.raises(ValueError, match=r"was made with {'shots': 1}"):
        maml.main(replace(config, shots=2))


def test_lazy_windows_train_what_their_control_trains(tmp_path):
    maml.main(maml.Config(**LITTLE_MAML, methods=("lazy", "control"), out=str(tmp_path)))
    names = ("exact", "lazy windows of 2", "control: exact, K/2 steps of 2 times the size")
    exact, lazy, control = (maml_results.load(tmp_path, n)["weights"]["equal steps"] for n in names)
    assert all(torch.allclose(lazy[k], v, atol=1e-4) for k, v in control.items())
    assert not all(torch.allclose(lazy[k], v, atol=1e-4) for k, v in exact.items())


def test_maml_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """In the middle of a method, to the same weights."""
    make = partial(maml.Config, **LITTLE_MAML | {"steps": 6, "points": 3}, methods=("exact",))
    maml.main(make(out=str(tmp_path / "whole")))
    seen, sample = [], maml.Learner.batch

    def stopping(self, part, first, number):
        seen.append((part, first))
        if (part, first) == ("train", 10):
            raise KeyboardInterrupt
        return sample(self, part, first, number)

    with monkeypatch.context() as patch:
        patch.setattr(maml.Learner, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            maml.main(make(out=str(tmp_path / "halves")))
        seen.clear()
        patch.setattr(maml.Learner, "batch", lambda *a: (seen.append(a[1:3]), sample(*a))[1])
        maml.main(make(out=str(tmp_path / "halves")))
    assert seen[0] == ("train", 8), "from the fourth step on"
    whole, halves = (maml_results.load(tmp_path / out, "exact") for out in ("whole", "halves"))
    assert all(torch.equal(v, halves["weights"]["equal steps"][k]) for k, v in whole["weights"]["equal steps"].items())
    assert [c[1:] for c in whole["curve"]] == [list(c[1:]) for c in halves["curve"]]
    assert not list((tmp_path / "halves").glob("*.pt"))


def test_maml_on_a_folder_of_images(tmp_path):
    data = str(pictures(tmp_path / "data", 10, 4))
    rows = maml.main(maml.Config(**LITTLE_MAML, data=data, methods=("first-order",), out=str(tmp_path / "run")))
    assert [r["method"] for r in rows] == ["exact", "first-order"]
    assert (tmp_path / "run" / "split.json").is_file()
