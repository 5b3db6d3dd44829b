"""The recipe of task affinity, on a few texts with three label columns."""

from __future__ import annotations

import csv

import affinity
import numpy as np
from helpers.family_training import Answers, cells
from helpers.readouts import Data


def test_the_recipe_groups_checks_and_trains(tmp_path, encoder, capsys):
    file = tmp_path / "notes.csv"
    with file.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "kind", "form", "tone", "size"])
        for i in range(324):
            a, b, c, d = i % 9, i // 9 % 9, (i + i // 9) % 9, (i + 2 * (i // 9)) % 9
            writer.writerow([f"{'word ' * (a + 1)}{'thing ' * (b + 1)}{i}", f"a{a}", f"b{b}", f"c{c}", f"d{d}"])
    columns = ("kind", "form", "tone", "size")
    data = Data(texts=(str(file),), label_columns=columns, ways=2, min_per_class=4, cache_dir=str(tmp_path / "cache"))
    config = affinity.Config(
        out=str(tmp_path / "out"), data=data, backbone=encoder, new=("*.size",), count=2, shots=2, queries=2, steps=2,
        subsets=8, subset_steps=2, generator_steps=2, episodes=4, test_tasks=2, seeds=2,
    )  # fmt: skip
    found = affinity.main(config)
    assert found.names == ("notes.kind", "notes.form", "notes.tone")
    assert found.new == ("notes.size",)
    out = capsys.readouterr().out
    assert "NMI of 3 groups" in out
    assert "a random group each" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"seed-0", "seed-1", "generators.csv"}
    assert {p.name for p in (tmp_path / "out" / "seed-1").iterdir()} == {"affinity.csv", "affinity.png", "checks.csv"}


def test_leads_are_paired_and_count_families_not_episodes():
    one, other = np.array([[0.5, 1.0], [0.75, 0.5]]), np.array([[0.25, 1.0], [0.5, 0.5]])
    mine, theirs = (Answers({"a": a, "b": np.repeat(a, 9, 0)}) for a in (one, other))
    assert cells([mine], [theirs], ["a", "b"]) == ["62.5", "0.750", "+25.00 ± 0.00", "+0.000 ± 0.000"]
    apart = Answers({"a": other, "b": one})
    assert cells([mine, apart], [mine, mine], ["a", "b"])[2] == "-6.25 ± 12.25", "one family of four is 25 points lower"


def test_random_groups_have_the_same_sizes():
    groups = affinity.random_groups([("a", "b"), ("c",), ("d", "e", "f")], seed=0)
    assert [len(g) for g in groups] == [2, 1, 3]
    assert sorted(n for g in groups for n in g) == list("abcdef")
