"""``mtl train --group-families``: groups of label columns, a generator for each, and the one that suits a new task."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import mtl
from mtl.cli.answers import parse
from mtl.cli.commands.train import Config
from mtl.cli.main import main

COLUMNS = ("kind", "form", "tone", "size")
LITTLE = (
    "--ways 2 --shots 2 --queries 2 --warm-steps 2 --tasks-per-step 2 --validation-tasks 2 --steps 0 "
    "--tuning-episodes 2 --test-episodes 8 --baselines ncm --tracker none --max-length 8"
)


@pytest.fixture
def notes(here: Path) -> Path:
    """Texts with four label columns of nine classes."""
    with (here / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *COLUMNS])
        for i in range(243):
            a, b = i % 9, i // 9 % 9
            writer.writerow(
                [f"{'word ' * a}{'thing ' * b}{i}", f"a{a}", f"b{b}", f"c{(a + b) % 9}", f"d{(a + 2 * b) % 9}"]
            )
    return here / "notes.csv"


def train(encoder: str, more: str, columns: tuple[str, ...] = COLUMNS) -> None:
    line = f"train --data notes.csv --backbone {encoder} --label-columns {' '.join(columns)} --split example --out run "
    main([*line.split(), *LITTLE.split(), *more.split()])


def test_a_generator_for_each_group(notes: Path, here: Path, encoder: str, capsys):
    train(encoder, "--group-families 2 --hold-out-families notes.size")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "next       mtl adapt --generator run --data LABELLED"
    groups = json.loads((here / "run" / "groups.json").read_text())["groups"]
    assert list(groups) == ["group-1", "group-2"]
    assert sorted(n for members in groups.values() for n in members) == ["notes.form", "notes.kind", "notes.tone"]
    assert (here / "run" / "affinity.png").stat().st_size > 5_000
    with (here / "run" / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["trained in"] == next((g for g, m in groups.items() if row["family"] in m), "none")
    assert {row["family"] for row in rows} == {f"notes.{name}" for name in COLUMNS}
    for name, members in groups.items():
        run = json.loads((here / "run" / name / "run.json").read_text())["identity"]
        assert members == run["train"]["sources"][0]["names"]
        assert len(run["validation"]["sources"][0]["names"]) == 3
        found = mtl.Comparison.from_json(here / "run" / name / "2-shot.json")
        assert set(found.unseen) == {f"notes.{n}" for n in COLUMNS} - set(members)

    before = {path: path.stat().st_mtime_ns for path in (here / "run").rglob("final/*") if path.is_file()}
    assert len(before) >= 6, "two generators and three static starts"
    main(["train", "--config", "run"])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the same command trains nothing again"
    with pytest.raises(SystemExit):
        train(encoder, "--group-families 3 --hold-out-families notes.size")
    assert "holds a run with other settings" in capsys.readouterr().err

    adapt = "adapt --generator run --data labelled.csv --label-column kind --text-column note --out t.mtl"
    main(adapt.split())
    said = capsys.readouterr().out
    nats = {
        g: float(line.split()[-2]) for line in said.splitlines() for g in groups if line.startswith(f"{g}: left-out")
    }
    least = {f"by {g}" for g, loss in nats.items() if loss == min(nats.values())}  # printed alike, they may differ
    assert least & set(said.splitlines())
    with pytest.raises(SystemExit):
        main([*adapt.replace("t.mtl", "u.mtl").split(), "--no-cross-validate"])
    assert "or name one, such as run/group-1/channelwise/final" in capsys.readouterr().err


def test_the_number_of_groups_is_a_number_or_auto():
    line = ["--data", "a", "b", "--backbone", "c", "--group-families"]
    assert [parse(Config, [*line, word]).group_families for word in ("2", "auto")] == [2, "auto"]


@pytest.mark.parametrize(
    ("more", "columns", "expected"),
    [
        ("--group-families 2", ("kind", "form"), "expected at least 3; name more --label-columns"),
        ("--group-families 5", COLUMNS, "--group-families 5: expected at most as many as families to train on, 4"),
        ("--group-families 0", COLUMNS, "--group-families 0: expected 1 or more"),
    ],
)
def test_numbers_that_make_no_groups(notes: Path, here: Path, encoder: str, capsys, more, columns, expected):
    with pytest.raises(SystemExit):
        train(encoder, more, columns)
    assert expected in capsys.readouterr().err
    assert not (here / "run" / "static").exists()
