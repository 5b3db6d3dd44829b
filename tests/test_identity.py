"""Which network a backbone is: its fingerprint, what its features depend on, and saved generators that compare both."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, build
from tiny import backbone as tiny
from torch import Tensor, nn

import mtl
from mtl.fewshot.saved_files import CONFIG
from mtl.networks.backbones import identity

WRITES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda t: t.add_(1),
    "past the counter": lambda t: t.data.add_(1),
    "signs": lambda t: t.data.neg_(),
    "one bit": lambda t: t.view(torch.int32).view(-1)[-1:].bitwise_xor_(1),
    "numpy": lambda t: t.detach().numpy().__setitem__(..., 3),
}


@pytest.mark.parametrize("name", [*NETWORKS])
def test_every_parameter_and_buffer_counts(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    before = backbone.fingerprint()
    named = dict(backbone.model.named_parameters()) | dict(backbone.model.named_buffers())
    seen = {before}
    for value in named.values():
        last = value.detach().view(-1)[-1:]
        old = last.clone()
        last.copy_(~old if old.dtype == torch.bool else old + 1)
        seen.add(backbone.fingerprint())
        last.copy_(old)
    assert len(seen) == 1 + len(named)
    assert backbone.fingerprint() == before


@pytest.mark.parametrize("write", WRITES)
def test_a_weight_changed_in_place_is_noticed(write: str):
    backbone = tiny()
    before, weight = backbone.fingerprint(), backbone.model.blocks[1].mlp.fc1.weight  # type: ignore[index]
    WRITES[write](weight)
    assert backbone.fingerprint() != before


def test_the_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch):
    backbone = tiny()
    before = backbone.fingerprint()
    monkeypatch.setattr(identity, "_hash_of_values", None)
    assert backbone.fingerprint() == before


def test_the_fingerprint_does_not_depend_on_layout_or_ties(tmp_path: Path):
    backbone = build("test_resnet", tmp_path)
    before = backbone.fingerprint()
    backbone.model.to(memory_format=torch.channels_last)
    assert backbone.fingerprint() == before
    shared, apart = (nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}) for _ in range(2))
    shared["b"] = shared["a"]
    for part in apart.values():
        part.load_state_dict(shared["a"].state_dict())
    one, other = (identity.WeightHashes(model).everything() for model in (shared, apart))
    assert one == other


def learner_of(backbone: mtl.Backbone) -> mtl.MetaLearner:
    return mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width, 0.1), inner_steps=1)


def test_batch_norm_statistics_of_another_network_are_refused(tmp_path: Path):
    saved, other = build("test_resnet", tmp_path), build("test_resnet", tmp_path)
    mtl.save_pretrained(learner_of(saved), tmp_path / "g")
    mtl.from_pretrained(tmp_path / "g", build("test_resnet", tmp_path))
    other.model.bn1.running_var.mul_(4)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"weights: \w{32} there, \w{32} now.*load that backbone"):
        mtl.from_pretrained(tmp_path / "g", other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_network_in_half_precision_is_taken(dtype: torch.dtype, tmp_path: Path):
    mtl.save_pretrained(learner_of(tiny()), tmp_path / "g")
    half = tiny().to(dtype)  # random weights would be other ones if they were drawn in half precision
    assert half.fingerprint() != tiny().fingerprint(), "its features are not the same to the last digit"
    mtl.from_pretrained(tmp_path / "g", half)
    half.model.blocks[1].mlp.fc1.weight[3, 5] += 1  # type: ignore[index]
    with pytest.raises(ValueError, match="weights"):
        mtl.from_pretrained(tmp_path / "g", half)
    mtl.save_pretrained(learner_of(tiny().to(dtype)), tmp_path / "h")
    mtl.from_pretrained(tmp_path / "h", tiny())


def test_a_change_too_small_for_half_precision_is_noticed_in_full(tmp_path: Path):
    mtl.save_pretrained(learner_of(tiny()), tmp_path / "g")
    other = tiny()
    other.model.blocks[1].mlp.fc1.weight.mul_(1 + 1e-6)  # type: ignore[index]
    with pytest.raises(ValueError, match="weights"):
        mtl.from_pretrained(tmp_path / "g", other)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("bert", {"pooling": "cls"}, "pooling: 'mean' there, 'cls' now"),
        ("bert", {"max_length": 8}, "max_length: 16 there, 8 now"),
        ("vit_tiny_patch16_224", {"pooling": "mean"}, "pooling: 'token' there, 'avg' now"),
        ("test_resnet", {"pretrained_cfg_overlay": {"input_size": (3, 32, 32), "mean": (0, 0, 0)}}, r"mean: \[0\.5"),
        ("test_resnet", {"pretrained_cfg_overlay": {"input_size": (3, 32, 32), "crop_pct": 1}}, r"crop_pct: 0\.95"),
        ("test_resnet", {"img_size": 48}, r"input_size: \[3, 32, 32\] there, \[3, 48, 48\] now"),
        ("bert", {"sites": "ssf"}, r"sites: \['emb"),
        ("test_resnet", {"last_k": 1}, r"sites: \['conv1.1'"),
        ("test_resnet", {"levels": "all"}, r"levels: \['own'\] there"),
    ],
)
def test_what_features_depend_on_is_compared(name: str, changes: Any, named: str, tmp_path: Path):
    mtl.save_pretrained(learner_of(build(name, tmp_path)), tmp_path / "g")
    with pytest.raises(ValueError, match=named) as refusal:
        mtl.from_pretrained(tmp_path / "g", build(name, tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def trained(backbone: mtl.Backbone) -> mtl.Backbone:
    """With weights as large as those of a trained network; attention is even and activations are linear at first."""
    for value in backbone.model.parameters():
        if value.dim() > 1:
            value.mul_(15)
    return backbone


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"num_attention_heads": 1}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}),
        ("llama", {"hidden_act": "gelu"}),
    ],
    ids=str,
)
def test_what_no_weight_shows_is_compared(name: str, changes: dict[str, Any], tmp_path: Path):
    backbone = trained(build(name, tmp_path))
    mtl.save_pretrained(learner_of(backbone), tmp_path / "g")
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    backbone.model.save_pretrained(tmp_path / "same")  # type: ignore[operator]
    backbone.model.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | changes))
    mtl.from_pretrained(tmp_path / "g", mtl.load_backbone(tmp_path / "same"))
    with pytest.raises(ValueError, match=r"features of the same examples: \d+% off with the same weights"):
        mtl.from_pretrained(tmp_path / "g", mtl.load_backbone(tmp_path / "other"))


def test_another_number_of_heads_is_noticed(tmp_path: Path):
    mtl.save_pretrained(learner_of(trained(tiny())), tmp_path / "g")
    with pytest.raises(ValueError, match="features of the same examples"):
        mtl.from_pretrained(tmp_path / "g", trained(tiny(num_heads=4)))


@pytest.mark.parametrize("name", [*NETWORKS])
def test_half_precision_answers_nearly_the_same(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    mtl.save_pretrained(learner_of(backbone), tmp_path / "g")
    mtl.from_pretrained(tmp_path / "g", build(name, tmp_path).to(torch.bfloat16))
    backbone.configure(precision=torch.bfloat16)
    mtl.save_pretrained(learner_of(backbone), tmp_path / "g")
    mtl.from_pretrained(tmp_path / "g", build(name, tmp_path))


@given(
    st.lists(st.integers(0, 7), max_size=3), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), st.data()
)
def test_any_value_changes_the_hash_and_restoring_it_restores_the_hash(shape: list[int], dtype: Any, data: Any):
    model = nn.Module()
    model.register_buffer("a", torch.arange(prod(shape)).reshape(shape).to(dtype))
    hashes, value = identity.WeightHashes(model), model.get_buffer("a")
    before = hashes.everything()
    if value.numel():
        place = data.draw(st.integers(0, value.numel() - 1))
        value.view(-1)[place] += 1
        assert hashes.everything() != before
        value.view(-1)[place] -= 1
    assert hashes.everything() == before


def test_a_generator_saved_by_the_first_version_still_loads(tmp_path: Path):
    backbone = tiny()
    mtl.save_pretrained(learner_of(backbone), tmp_path / "g")
    config = json.loads((tmp_path / "g" / CONFIG).read_text())
    del config["digest"], config["sha256"]
    config["backbone"] = {
        "load": config["backbone"]["load"],
        "width": backbone.width,
        "modulation_width": backbone.modulation_width,
        "fingerprint": "a6b0b9b2d4a1f3f7",
    }
    (tmp_path / "g" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"fingerprint: a6b0b9b2d4a1f3f7 there, \w{16} now"):
        mtl.from_pretrained(tmp_path / "g")
    config["backbone"]["fingerprint"] = backbone.former_fingerprint()
    (tmp_path / "g" / CONFIG).write_text(json.dumps(config))
    mtl.from_pretrained(tmp_path / "g")
