"""LoRA and IA3 as baselines: peft's own arithmetic for many tasks at once, and the backbone stays as it is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TEXT, batch, build
from torch.func import functional_call

import mtl
from mtl.fewshot.per_task_layers import adapt_per_task

pytest.importorskip("peft", reason='pip install "mtl[text]"')
module = importlib.import_module("mtl.fewshot.peft_baselines")  # a function of this name stands before it


def episode(backbone: mtl.Backbone) -> mtl.Episode:
    inputs: Any = batch(backbone, 2, 4)
    examples = mtl.Examples(inputs, torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]]))
    return mtl.Episode(examples, examples, 2)


@pytest.mark.parametrize("kind", ["LoRA", "IA3"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_every_task_has_what_peft_computes_with_its_weights(name: str, kind: Any, tmp_path: Path):
    backbone = build(name, tmp_path)
    theirs, ours = (module.adapted_copy(backbone, kind) for _ in range(2))
    own, together = (module._Features(backbone, model) for model in (theirs, ours))
    assert adapt_per_task(ours, lambda n: together(backbone.example_inputs(n)))
    draw = torch.Generator().manual_seed(3)
    weights = {
        f"model.{k}": p.detach() + 0.1 * torch.randn(3, *p.shape, generator=draw)
        for k, p in theirs.named_parameters()
        if p.requires_grad
    }
    inputs = mtl.Inputs.of(batch(backbone, 3, 2))
    found = functional_call(together, weights, (inputs.flatten(),)).unflatten(0, (3, 2))
    for t in range(3):
        of_task = {k: v[t] for k, v in weights.items()}
        torch.testing.assert_close(found[t], functional_call(own, of_task, (inputs.map(lambda v, t=t: v[t]),)))
    assert not torch.allclose(found[0], own(inputs.map(lambda v: v[0]))), "the weights change something"


def test_a_network_that_adapts_what_belongs_to_no_example_takes_one_task_at_a_time(tmp_path: Path):
    # Queries and keys of relative positions, which all examples share.
    config = {"model_type": "deberta-v2", **TEXT["deberta-v2"], "share_att_key": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = mtl.load_backbone(tmp_path, pretrained=False)
    tasks = episode(backbone)
    for method in mtl.fewshot.peft_baselines(backbone, steps=30, lora_lr=0.05, ia3_lr=0.1):
        assert torch.equal(method(tasks), tasks.support.labels)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_tasks_together_are_the_tasks_one_by_one(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    before = backbone.fingerprint()
    tasks = episode(backbone)
    for method in mtl.fewshot.peft_baselines(backbone, steps=30, lora_lr=0.02, ia3_lr=0.1):
        found, surely = method.answers(tasks)
        assert torch.equal(found, tasks.support.labels), "it fits what it sees"
        for t in range(tasks.tasks):
            torch.testing.assert_close(method.answers(tasks[t : t + 1])[1], surely[t : t + 1], rtol=1e-3, atol=1e-4)
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
