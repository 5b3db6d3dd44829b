"""Files of weights for timm networks, loaded as timm loads them, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import SMALL, VIT
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from mtl.networks.backbones import load_backbone

SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}


def network(name: str = "test_resnet", **args: Any) -> nn.Module:
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=7, **(args or SMALL)).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    return model


def features(model: Any, x: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(x), pre_logits=True)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in state.items()}


WRAPPERS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "test_resnet"},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "average": lambda state: {"state_dict": {k: v * 0 for k, v in state.items()}, "state_dict_ema": state},
    "parallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "old": lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
    "old and parallel": lambda state: prefixed(WRAPPERS["old"](state), "module."),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_and_old_files_load(kind: str, tmp_path: Path):
    model = network()
    torch.save(WRAPPERS[kind](model.state_dict()), tmp_path / "w.pth")
    backbone = load_backbone("test_resnet", checkpoint=tmp_path / "w.pth", **SMALL)
    x = backbone.example_inputs(2).tensor
    torch.testing.assert_close(backbone.features(x), features(model, x))


@pytest.mark.parametrize("size", [24, 32, (16, 32)])
def test_another_image_size_resizes_the_position_embedding(size: Any, tmp_path: Path):
    model = network("vit_tiny_patch16_224", **VIT)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    args = {**VIT, "img_size": size}
    backbone: Any = load_backbone("vit_tiny_patch16_224", checkpoint=tmp_path / "w.pth", **args)
    height, width = (size, size) if isinstance(size, int) else size
    expected = resample_abs_pos_embed(model.state_dict()["pos_embed"], [height // 8, width // 8], num_prefix_tokens=1)
    torch.testing.assert_close(backbone.model.pos_embed, expected)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=7, **args).eval()
    plain.load_state_dict({**model.state_dict(), "pos_embed": expected})
    x = backbone.example_inputs(2).tensor
    torch.testing.assert_close(backbone.features(x), features(plain, x))


def test_relative_positions_are_resized_as_timm_does(tmp_path: Path):
    model = network("swin_tiny_patch4_window7_224", **SWIN)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    args = {**SWIN, "img_size": 64, "window_size": 8}
    backbone = load_backbone("swin_tiny_patch4_window7_224", checkpoint=tmp_path / "w.pth", **args)
    assert backbone.example_inputs(1).raw.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"w\.pth' cannot be read"),
        (b"PK\x03\x04 and nothing", r"w\.pth' cannot be read"),
        (b"<html>not found</html>", r"w\.pth' cannot be read"),
    ],
)
def test_a_damaged_file_is_named(contents: bytes, message: str, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(contents)
    with pytest.raises(ValueError, match=message) as raised:
        load_backbone("test_resnet", checkpoint=tmp_path / "w.pth", **SMALL)
    assert "\n" not in str(raised.value)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    torch.save(network("vit_tiny_patch16_224", **VIT).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit ResNet: missing"):
        load_backbone("test_resnet", checkpoint=tmp_path / "w.pth", **SMALL)
    with pytest.raises(ValueError, match=r"w\.pth does not fit VisionTransformer: .*unexpected \['blocks\.1"):
        load_backbone("vit_tiny_patch16_224", checkpoint=tmp_path / "w.pth", **{**VIT, "depth": 1, "img_size": 24})
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth"):
        load_backbone("test_resnet", checkpoint=tmp_path / "w.pth", **SMALL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"unknown timm model 'resnet81'; nearest names: resnet\d+"),
        ("myfancy-convnext-for-birds", r"nearest names: .*convnext.*timm\.list_models\(\"\*convnext\*\"\) has \d+"),
        ("qqqqzzzz", r"nearest names: none; search with timm\.list_models\(\"\*word\*\"\)\. For transformers"),
    ],
)
def test_an_unknown_name_gets_names_to_try(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_backbone(name, pretrained=False)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder"])
def test_a_folder_without_a_network_is_named(name: str):
    with pytest.raises(ValueError, match=rf"^{name} is no folder with a config\.json; expected one, or an id"):
        load_backbone(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mtl/glyph", r"mtl/glyph does not come with mtl; expected one of mtl/glyphs, .*mtl/minilm"),
        ("hf/bert base", r"hf/bert base is no folder, and no id of the hub \(.*expected hf/owner/name"),
        ("a/b/c", r"a/b/c is no folder, and no id of the hub"),
        ("", "unknown timm model ''"),
    ],
)
def test_what_cannot_be_a_name_is_said(name: str, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        load_backbone(name)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_called_like_a_network_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_resnet").mkdir()
    assert load_backbone("test_resnet", pretrained=False, **SMALL).width > 0


@pytest.mark.parametrize(("name", "pooling"), [("test_resnet", "cls"), ("test_vit", "last"), ("test_vit", "mean-all")])
def test_a_pooling_that_timm_lacks_is_named(name: str, pooling: str):
    with pytest.raises(ValueError, match=rf"pooling='{pooling}': {name} does not have it \(.*'mean' or timm's own"):
        load_backbone(name, pretrained=False, pooling=pooling)
