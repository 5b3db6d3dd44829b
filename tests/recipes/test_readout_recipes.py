"""The ready generator's recipe and the comparison on readouts, on little texts."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import compare_readouts
import pytest
import torch
import train_universal
from helpers.pupils import Pupil
from helpers.readouts import Data, open_network
from safetensors.torch import load_file

import mtl
from mtl.fewshot import ready


@pytest.fixture
def data(tmp_path) -> Data:
    """Two kinds of question about each text, and a third one about others."""
    file, other = tmp_path / "notes.csv", tmp_path / "letters.csv"
    rows = [
        (f"{'word ' * (a + 1)}{'thing ' * (b + 1)}{i}", f"a{a}", f"b{b}")
        for a in range(9)
        for b in range(9)
        for i in range(2)
    ]
    with file.open("w", newline="") as f:
        csv.writer(f).writerows([("text", "kind", "form"), *rows])
    with other.open("w", newline="") as f:
        csv.writer(f).writerows(
            [("text", "label"), *((f"letter {i} {'x ' * c}", f"c{c}") for c in range(4) for i in range(9))]
        )
    return Data(
        texts=(str(file), str(other)),
        label_columns=("notes:kind", "letters:label"),
        validation_families=("letters.label",),
        ways=2,
        examples_per_class=6,
        min_per_class=3,
        cache_dir=str(tmp_path / "cache"),
    )


def config_of(data: Data, encoder: str, out: Path, **changes) -> train_universal.Config:
    little = train_universal.Config(
        out=str(out), data=data, text_backbones=(encoder,), hidden=8, steps=2, tasks_per_step=2, shots=(1, 2),
        queries=1, validations=2, validation_tasks=2, test_tasks=2,
    )  # fmt: skip
    return replace(little, **changes)


def test_what_is_kept_is_a_ready_generator(tmp_path, data, encoder, capsys, monkeypatch):
    file = train_universal.main(config_of(data, encoder, tmp_path / "out"))
    weights = load_file(file)
    assert not any(name.startswith("standard.") for name in weights)
    assert all(v.numel() < 10_000 for v in weights.values()), "no weight per channel"
    facts = json.loads((tmp_path / "out" / "universal.json").read_text())["extra"]
    assert facts["families"] == ["notes.kind"]
    assert "1-shot" in " ".join(facts["validation"])
    assert "cross-validated, by support" in capsys.readouterr().out
    monkeypatch.setattr(ready, "ASSETS", tmp_path / "out")
    other = mtl.load_backbone("mtl/glyphs", sites="none", levels="all")
    generator = mtl.load_generator("mtl/universal", other).generator
    assert torch.equal(generator.state_dict()["common.log_gain"], weights["common.log_gain"])


def test_networks_share_weights_and_keep_their_own_statistics(data, encoder):
    divided = data.of_kind("texts")
    assert divided is not None
    one = open_network(encoder, data, divided, ("train", "val"), max_length=16)
    two = open_network(encoder, data, divided, ("train", "val"), pooling="cls")
    first = Pupil.of(one, 8)
    second = Pupil.of(two, 8, first.learner.generator)
    before = {k: v.detach().clone() for k, v in second.by_support.generator.state_dict().items()}
    with torch.no_grad():
        for parameter in first.learner.generator.parameters():
            parameter.add_(1)
    after = second.by_support.generator.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {name for name, _ in first.learner.generator.named_parameters()}
    statistics = [p.learner.generator.standard.mean for p in (first, second)]
    assert not torch.equal(*statistics)


def test_a_network_passes_over_each_example_once(data, encoder):
    divided = data.of_kind("texts")
    assert divided is not None
    first = open_network(encoder, data, divided)
    again = open_network(encoder, data, divided)
    again.rows.preprocess = None  # type: ignore[assignment]
    for part in ("train", "val"):
        network = again.tasks(part, 2, 1)
        assert torch.equal(
            network.sample(0).support.inputs["readout"],
            first.tasks(part, 2, 1).sample(0).support.inputs["readout"],
        )
    assert max(len(places) for c in divided.parts["train"].values() for places in c.items.values()) <= 6


def test_comparison_on_readouts(tmp_path, data, encoder):
    config = compare_readouts.Config(
        out=str(tmp_path / "out"), data=replace(data, validation_families=(), hold_out_families=("letters.label",)),
        backbone=encoder, shots=(2,), training_shots=(2, 1), queries=1, steps=2, tasks_per_step=2,
        validation_tasks=2, tuning_episodes=2, test_episodes=4, baselines=("logistic", "ridge_all"),
    )  # fmt: skip
    [found] = compare_readouts.main(config)
    assert found.unseen == ("letters.label",)
    assert {r.kind for r in found.rows} == {"ours", "control", "baseline"}
    assert mtl.Comparison.from_json(tmp_path / "out" / "2-shot.json").families == found.families


def test_calibration_is_measured_on_tasks_of_new_classes(tmp_path, data, encoder):
    import calibration

    config = calibration.Config(
        out=str(tmp_path / "out"), data=replace(data, ways=3), backbone=encoder, shots=(1, 2), queries=2,
        validation_tasks=2, tuning_episodes=2, test_tasks=2, baselines=("logistic",), reject=0.3,
    )  # fmt: skip
    one, two = calibration.main(config)
    assert [r.method for r in two.rows][:2] == ["with temperature, 0 steps", "without temperature"]
    sure, plain, logistic = two.rows
    assert sure.accuracy.tolist() == plain.accuracy.tolist()
    assert sure.answers.ece[0] != plain.answers.ece[0]
    assert one.rows[0].answers.ece[0] == one.rows[1].answers.ece[0], "nothing can be left out of one example per class"
    assert logistic.answers is not None
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "no temperature" in text
    assert "rejected of strangers" in text


def test_how_well_strangers_are_told_apart():
    import calibration

    assert calibration.area(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5, 0.7])) == pytest.approx(4.5 / 6)
    episode = mtl.Episode(
        mtl.Examples(torch.arange(12.0).view(2, 6, 1), [[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]]),
        mtl.Examples(torch.zeros(2, 1, 1), [[0], [0]]), 3,
    )  # fmt: skip
    left = calibration.without_last(episode)
    assert left.inputs.tensor.flatten(1).tolist() == [[0, 3, 1, 4], [10, 11, 8, 9]]
    assert left.labels.tolist() == [[0, 0, 1, 1]] * 2
