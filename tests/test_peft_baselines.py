"""LoRA and IA3 as baselines: each task on its own, and the backbone stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import batch, build

import mtl

pytest.importorskip("peft", reason='pip install "mtl[text]"')


def episode(backbone: mtl.Backbone) -> mtl.Episode:
    inputs: Any = batch(backbone, 2, 4)
    examples = mtl.Examples(inputs, torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]]))
    return mtl.Episode(examples, examples, 2)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_tasks_are_fitted_one_by_one(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    before = backbone.fingerprint()
    tasks = episode(backbone)
    for method in mtl.fewshot.peft_baselines(backbone, steps=30, lora_lr=0.02, ia3_lr=0.1):
        found = method(tasks)
        assert torch.equal(found, tasks.support.labels), "it fits what it sees"
        alone = method(tasks[1:])
        assert torch.equal(alone, found[1:])
        assert method.adapted_values(2) > 2 * backbone.width
    assert backbone.fingerprint() == before
    assert not any(p.requires_grad for p in backbone.parameters())


def test_they_start_alike_whatever_was_drawn_before(tmp_path: Path):
    backbone = build("bert", tmp_path)
    tasks, found = episode(backbone), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        lora, _ = mtl.fewshot.peft_baselines(backbone, steps=1, lora_lr=0.3)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(lora(tasks))
    assert torch.equal(*found)


def test_unknown_families_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no layers of the family 'timm'; leave this method out"):
        mtl.fewshot.peft_baselines(build("vit_tiny_patch16_224", tmp_path))
