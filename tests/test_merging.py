"""merge: one task's modulation inside a plain network."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, batch, build, modulation_of
from torch import nn

import mtl
from mtl.networks.backbones import Backbone
from mtl.networks.merging import merge
from mtl.networks.modulation import Modulation

# Networks whose every layer has a bias, or is followed by linear layers that have one.
WHOLE = [
    "vit_tiny_patch16_224",
    "test_resnet",
    "resnet10t",
    "test_convnext",
    "test_efficientnet",
    "test_byobnet",
    "bert",
    "roberta",
    "distilbert",
    "deberta-v2",
]


def features(backbone: Backbone, model: nn.Module, inputs: Any, task: int) -> torch.Tensor:
    return backbone.features(mtl.Inputs.of(inputs).map(lambda v: v[task]), model)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("sites", ["norm", "ssf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_is_modulated(name: str, sites: Any, tmp_path: Path):
    backbone = build(name, tmp_path, sites=sites)
    state, hooked = copy.deepcopy(backbone.model.state_dict()), hooks(backbone.model)
    inputs, m = batch(backbone), modulation_of(backbone)
    expected = backbone(inputs, m)[1]
    merged = merge(backbone, m, task=1)
    found = features(backbone, merged.model, inputs, 1)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()

    assert type(merged.model) is type(backbone.model)
    assert all(torch.equal(v, state[k]) for k, v in backbone.model.state_dict().items())
    assert hooks(backbone.model) == hooked > 0
    new = merged.model.state_dict().keys() - state.keys()
    assert state.keys() <= merged.model.state_dict().keys()
    assert bool(new) == bool(merged.unmerged)
    if name in WHOLE:
        assert merged.unmerged == ()
        assert hooks(merged.model) == 0


def test_weights_alone_carry_the_modulation(tmp_path: Path):
    """A state_dict loaded into the original class gives the modulated network."""
    backbone = build("bert", tmp_path, sites="ssf")
    inputs, m = batch(backbone), modulation_of(backbone)
    plain = build("bert", tmp_path, seed=9)
    plain.model.load_state_dict(merge(backbone, m).model.state_dict())
    torch.testing.assert_close(plain(inputs)[0], backbone(inputs, m)[0], rtol=1e-4, atol=1e-5)


def test_rms_norm_shift_moves_into_readers_with_a_bias(tmp_path: Path):
    backbone = build("qwen2", tmp_path)
    left = merge(backbone, modulation_of(backbone)).unmerged
    kept = ["layers.0.post_attention_layernorm", "layers.1.post_attention_layernorm", "norm"]
    assert [note.split(":")[0] for note in left] == kept  # input_layernorm is read by q, k and v, which have one
    assert all("shift stays an operation" in note for note in left)


def test_a_reader_beside_the_linear_layer_is_noticed(tmp_path: Path):
    """The linear layer has a bias but the RMSNorm's output is also added back: its shift must stay."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.RMSNorm(4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return x + self.fc(x)

    class Plain(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(x))

    for kind, left in ((Residual, 1), (Plain, 0)):
        backbone = Backbone(kind(), _Vectors(), name="toy")
        merged = merge(backbone, modulation_of(backbone))
        assert len(merged.unmerged) == left


class _Vectors(mtl.networks.backbones.AbstractAdapter):
    """Plain vectors of four numbers."""

    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        return model(inputs)

    def example(self, n: int) -> torch.Tensor:
        return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))

    def preprocess(self, items: Any) -> Any:
        return items


def test_no_shift_no_report(tmp_path: Path):
    backbone = build("llama", tmp_path, sites="ssf")
    m = modulation_of(backbone)
    merged = merge(backbone, Modulation(m.scale, torch.zeros_like(m.shift)))
    assert merged.unmerged == ()
    assert hooks(merged.model) == 0
    assert merged.model.state_dict().keys() == backbone.model.state_dict().keys()


def test_one_plus_weight_norm_folds(tmp_path: Path):
    backbone = build("gemma", tmp_path)
    m = modulation_of(backbone)
    merged = merge(backbone, Modulation(m.scale, torch.zeros_like(m.shift)))
    old, new = (model.get_parameter("norm.weight") for model in (backbone.model, merged.model))
    torch.testing.assert_close(1 + new, m.scale[0, -16:] * (1 + old))  # a weight of zero stands for one


def test_norms_without_parameters_get_them():
    for norm, keys in ((nn.LayerNorm(4, elementwise_affine=False), 2), (nn.BatchNorm1d(4, affine=False), 2)):
        backbone = Backbone(nn.Sequential(nn.Linear(4, 4), norm), _Vectors(), name="toy")
        merged = merge(backbone, modulation_of(backbone))
        assert merged.unmerged == ("1: new key 1.weight", "1: new key 1.bias")
        assert len(merged.model.state_dict()) == len(backbone.model.state_dict()) + keys


def test_shared_weights_stay_shared():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    backbone = Backbone(nn.Sequential(first, nn.GELU(), second), _Vectors(), name="toy", sites="ssf")
    inputs, m = batch(backbone), modulation_of(backbone)
    merged = merge(backbone, m)
    assert merged.model.get_parameter("0.weight") is merged.model.get_parameter("2.weight")
    assert [note.split(":")[0] for note in merged.unmerged] == ["0", "2"]
    torch.testing.assert_close(merged.model(inputs[0]), backbone(inputs, m)[0])


def test_operations_survive_pickle_and_copy(tmp_path: Path):
    backbone = build("llama", tmp_path)
    inputs, m = batch(backbone), modulation_of(backbone)
    model = merge(backbone, m).model
    expected = features(backbone, model, inputs, 0)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(features(backbone, again, inputs, 0), expected)


def test_bfloat16_is_merged_in_float32(tmp_path: Path):
    backbone = build("bert", tmp_path)
    m = modulation_of(backbone)
    reference = merge(backbone.to(torch.bfloat16).to(torch.float32), m).model.state_dict()
    merged = merge(backbone.to(torch.bfloat16), m).model.state_dict()
    assert all(torch.equal(v, reference[k]) for k, v in merged.items())


def test_unknown_task(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    for task in (2, -1):
        with pytest.raises(ValueError, match=f"task={task}: the modulation holds tasks 0 to 1"):
            merge(backbone, modulation_of(backbone), task)


def test_a_wrong_merge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    monkeypatch.setattr("mtl.networks.merging.network.fold", lambda *_: [])
    with pytest.raises(RuntimeError, match="off by"):
        merge(backbone, modulation_of(backbone))
    assert hooks(backbone.model) > 0
