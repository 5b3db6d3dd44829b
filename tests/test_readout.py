"""Features of all stages: each number against a pooling written out by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, TEXT, batch, build, modulation_of
from torch import Tensor

import mtl
from mtl.episode import Inputs

IMAGES = [name for name in NETWORKS if name not in TEXT]


def of_level(backbone: mtl.Backbone, features: Tensor, name: str) -> Tensor:
    names = [level.name for level in backbone.levels]
    return features.split([level.width for level in backbone.levels], -1)[names.index(name)]


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_describe_the_features(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs = backbone.example_inputs(3)
    features = backbone.features(inputs)
    assert backbone.sites == ()
    assert backbone.modulation_width == 0
    assert features.shape == (3, backbone.width)
    assert sum(level.width for level in backbone.levels) == backbone.width
    assert backbone.levels[-1].kind == "own"
    assert backbone.levels[-1].depth == 1.0
    own = backbone.adapter.features(backbone.model, inputs.raw)
    torch.testing.assert_close(features[:, backbone.last], own)
    assert not any(level.name.startswith("pooler") for level in backbone.levels)
    assert [level.stage for level in backbone.levels] == sorted(level.stage for level in backbone.levels)
    pieces = [p for p in features.split([level.width for level in backbone.levels], -1) if len(p[0]) == own.shape[1]]
    assert not any(torch.allclose(p, own) for p in pieces[:-1]), "no statistic of the last stage twice"
    plain = build(name, tmp_path)
    assert len(plain.levels) == 1
    assert plain.last == slice(0, plain.width) == slice(0, plain.levels[0].width)


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_a_finished_readout_takes_the_place_of_inputs(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs: Any = batch(backbone, 1, 6)
    finished = Inputs.of(backbone.with_prefix(Inputs.of(inputs).flatten())).with_task_axis()
    assert finished.computed
    assert finished["readout"].dtype == torch.float16
    backbone.model.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=2)
    support = mtl.Examples(finished, torch.tensor([[0, 1, 2, 0, 1, 2]]))
    assert learner.adapt(support).predict(finished).shape == (1, 6)
    learner.meta_step(mtl.Episode(support, support, 3))
    assert backbone.observe(finished)[1] == []
    with pytest.raises(ValueError, match="sites that change it"):
        build(name, tmp_path, levels="all")(finished.raw)


@pytest.mark.parametrize("last_k", [None, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_kept_prefix_takes_the_place_of_inputs(name: str, last_k: int | None, tmp_path: Path):
    backbone = build(name, tmp_path, levels="all", last_k=last_k)
    inputs, modulation = batch(backbone), modulation_of(backbone)
    expected = backbone(inputs, modulation)
    torch.testing.assert_close(backbone(backbone.prepare(inputs), modulation), expected, rtol=1e-4, atol=1e-5)
    kept = Inputs.of(backbone.with_prefix(Inputs.of(inputs).flatten())).unflatten(2)
    found = backbone(kept, modulation)
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=3e-3 * float(expected.abs().max()))
    assert kept.computed or name in TEXT or not backbone._prefix, "no images are left"
    kept_with_texts = ["bert", "gpt2", "llama", "qwen3", "gemma", "modernbert"]
    assert name not in kept_with_texts or not last_k or {"prefix", "prefix.levels"} < kept.tensors.keys()
