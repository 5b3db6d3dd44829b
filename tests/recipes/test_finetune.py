"""Fine-tuning without a sweep, and the sweep that it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import finetune
import numpy as np
import pytest
import torch
from helpers import sweeps
from helpers.readouts import Data
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import Method, Setup
from mtl.fewshot.baselines import Baseline
from mtl.fewshot.baselines.fine_tuning import head_only


def test_labels_set_aside_are_of_every_class_and_not_trained_on():
    episode = Blobs(ways=3, shots=5).sample(0)
    inner = sweeps.set_aside(episode)
    assert inner is not None
    assert torch.equal(inner.query.labels[0].bincount(), torch.ones(3, dtype=torch.long))
    assert torch.equal(inner.support.labels[0].bincount(), torch.full((3,), 4))
    kept = {float(v.sum()) for e in (inner.support, inner.query) for v in e.inputs.tensor[0]}
    assert kept == {float(v.sum()) for v in episode.support.inputs.tensor[0]}
    assert sweeps.set_aside(Blobs(ways=3, shots=1).sample(0)) is None


def test_a_sweep_takes_the_rate_that_is_best_on_what_was_set_aside():
    setup, episode = Setup(backbone(sites="none"), steps=3), Blobs(ways=3, shots=5).sample(1)
    rates = (1e-6, 0.05, 1.0)
    inner = sweeps.set_aside(episode)
    assert inner is not None
    right = [(head_only(setup, r)(inner) == inner.query.labels).float().mean() for r in rates]
    best = head_only(setup, rates[int(torch.stack(right).argmax())])
    found = sweeps.swept(setup, head_only, rates)
    assert torch.equal(found(episode), best(episode))
    assert found.name == "head only, 3 steps, best of 3 rates"
    single = Blobs(ways=3, shots=1).sample(1)
    assert torch.equal(found(single), head_only(setup, 0.05)(single))


def test_only_what_lies_above_the_frozen_part_is_tuned():
    b, episode = backbone(last_k=1), Blobs(ways=3, shots=5).sample(1)
    assert sweeps.above_the_prefix(b).keys() == {
        f"model.{k}" for k, _ in b.model.named_parameters() if k.startswith(("blocks.1.", "norm."))
    }
    before = {k: v.clone() for k, v in b.model.state_dict().items()}
    plain = sweeps.last_block(Setup(b, steps=0), 0.01).logits(episode)
    tuned = sweeps.last_block(Setup(b, steps=5), 0.01).logits(episode)
    assert (tuned - plain).abs().max() > 0.1
    assert all((v == before[k]).all() for k, v in b.model.state_dict().items())


def unknown_to_peft(*_: object) -> Method:
    raise ValueError("peft knows no layers of this family")


def test_from_data_to_tables_and_again(tmp_path: Path, encoder: str, capsys, monkeypatch):
    rows = ["text,label", *(f"{'word ' * c}{i},c{c}" for c in range(9) for i in range(8))]
    (tmp_path / "notes.csv").write_text("\n".join(rows))
    data = Data(
        texts=(str(tmp_path / "notes.csv"),), label_columns=("label",), ways=2, examples_per_class=8, min_per_class=3,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    config = finetune.Config(
        out=str(tmp_path / "out"), data=data, backbone=encoder, shots=(1, 3), training_shots=(2,),
        validation_shots=(2,), queries=2, inner_steps=2, warm_steps=2, steps=2, tasks_per_step=2, validation_tasks=2,
        tuning_episodes=2, test_episodes=2, sweep_episodes=1, inside_episodes=1, sweep=(0.01, 0.1),
        baselines=("ridge_all",), cross_validate=True,
    )  # fmt: skip
    found = finetune.main(config)
    said = capsys.readouterr().out
    assert [len(c.rows) for c in found] == [6, 2, 4, 6, 2, 4]
    ours = "refined, 2 steps", "refined, 0 steps", "closed form, trained as long, 0 steps", "ready generator"
    for name in (*ours, "best of 2 rates", "weights of the last block", "LoRA"):
        assert name in said
    assert (tmp_path / "out" / "finetune.png").stat().st_size > 10_000
    files = {p.stem for p in (tmp_path / "out").glob("*.json")}
    assert files == {
        f"2-way {n}-shot{more}" for n in (1, 3) for more in ("", ", with a sweep", ", with a sweep inside the network")
    }
    learner = mtl.from_pretrained(tmp_path / "out" / "refined" / "final")
    assert (learner.inner_steps, type(learner.generator)) == (2, mtl.fewshot.Refined)
    again = finetune.main(replace(config, shots=(3,)))
    assert (again[0].rows[0].accuracy == found[3].rows[0].accuracy).all()
    monkeypatch.setitem(finetune.PEFT_BASELINES, "lora", Baseline(unknown_to_peft))
    without = finetune.main(replace(config, shots=(3,)))
    assert [r.method for c in without for r in c.rows] == [r.method for c in found[3:] for r in c.rows][:-1]
    assert "no LoRA: peft knows no layers" in capsys.readouterr().out
    [both] = finetune.main(replace(config, shots=(3,), sweep_episodes=0, inside_episodes=0, seeds=(0, 1)))
    assert [r.method for r in both.rows] == [r.method for r in found[3].rows]
    first, second = (mtl.from_pretrained(tmp_path / "out" / place / "refined" / "final") for place in (".", "seed-1"))
    alike = [a.equal(b) for a, b in zip(first.generator.parameters(), second.generator.parameters(), strict=True)]
    assert not all(alike), "each seed trains its own"


def test_more_ways_than_classes_are_answered_in_words(tmp_path: Path, encoder: str):
    rows = ["text,label", *(f"{'word ' * c}{i},c{c}" for c in range(9) for i in range(8))]
    (tmp_path / "notes.csv").write_text("\n".join(rows))
    data = Data(
        texts=(str(tmp_path / "notes.csv"),), label_columns=("label",), ways=50, cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(
        ValueError, match=r"no question has 50 classes in any of train, val, test; notes\.label.* fewer --ways"
    ):
        finetune.main(finetune.Config(out=str(tmp_path / "out"), data=data, backbone=encoder))


def test_what_several_trainings_say_is_their_mean_on_every_task():
    rows = [
        mtl.tools.MethodResult("refined", "ours", np.array(a), s, 7) for a, s in (([0.2, 1], 1.0), ([0.6, 0.5], 3.0))
    ]
    found = finetune.mean(rows)
    assert found.accuracy.tolist() == [0.4, 0.75]
    assert (found.seconds_per_task, found.adapted_values) == (2.0, 7)
    assert finetune.mean(rows[:1]) is rows[0]


def test_data_is_needed():
    with pytest.raises(ValueError, match="expected either --images or --texts"):
        finetune.Config()
