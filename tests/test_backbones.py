"""load_backbone and Backbone, on small random networks; no hub."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from networks import NETWORKS, SMALL, VIT, batch, build, load, modulation_of, rows
from PIL import Image
from tiny import backbone
from torch import Tensor, nn

import mtl
from mtl.networks.backbones import load_backbone
from mtl.networks.modulation import Modulation


@pytest.mark.parametrize("sites", ["norm", "ssf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward(name: str, sites: Any, tmp_path: Path):
    """Identity is the plain network; one batch of tasks is the loop over tasks; every site matters."""
    backbone = build(name, tmp_path, sites=sites)
    inputs, m = batch(backbone), modulation_of(backbone)
    plain, full = backbone(inputs), backbone(inputs, m)
    assert plain.shape == full.shape == (2, 2, backbone.width)
    identity = backbone(inputs, Modulation.identity(2, backbone.modulation_width))
    torch.testing.assert_close(identity, plain, rtol=1e-5, atol=1e-5)  # batch norms fold it into their coefficients
    assert (full - plain).abs().max() > 0.05 * plain.abs().max()
    loop = [backbone(rows(inputs, i), Modulation(m.scale[i : i + 1], m.shift[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(full, torch.cat(loop), rtol=1e-5, atol=1e-5)

    m.shift.requires_grad_()
    backbone(inputs, m).pow(3).sum().backward()
    assert m.shift.grad is not None
    by_site = m.shift.grad.abs().sum(0).split([s.width for s in backbone.sites])
    # A key's shift reaches nothing through a softmax, but queries and values share its layer or follow it.
    dead = [s.name for s, g in zip(backbone.sites, by_site, strict=True) if not g.any()]
    assert dead == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet", "bert", "llama"])
def test_observe(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="ssf")
    inputs = batch(backbone)
    features, means = backbone.observe(inputs)
    assert torch.equal(features, backbone(inputs))
    assert [m.shape for m in means] == [(2, 2, s.width) for s in backbone.sites]


def test_observe_and_features_ignore_padding(tmp_path: Path):
    backbone = build("bert", tmp_path)
    ids = torch.randint(50, (1, 1, 4))
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    long = {k: torch.cat([v, torch.zeros_like(v)], -1) for k, v in short.items()}
    (a, means_a), (b, means_b) = backbone.observe(short), backbone.observe(long)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(means_a, means_b)


def test_frozen_whatever_a_parent_asks(tmp_path: Path):
    backbone = build("test_resnet", tmp_path)
    nn.ModuleList([backbone]).train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.train() is backbone
    state = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    backbone(batch(backbone), modulation_of(backbone))
    assert all(torch.equal(v, state[k]) for k, v in backbone.model.state_dict().items())


def test_bfloat16_storage_takes_float32_images_and_keeps_the_former_fingerprint(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    inputs, m = batch(backbone), modulation_of(backbone)
    full, mark = backbone(inputs, m), backbone.former_fingerprint()
    low = backbone.to(torch.bfloat16)(inputs, m)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1)
    assert backbone.former_fingerprint() == mark


def test_input_errors(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    with pytest.raises(ValueError, match="inputs hold 2 tasks but the modulation 3"):
        backbone(batch(backbone), Modulation.identity(3, backbone.modulation_width))
    with pytest.raises(ValueError, match=r"expected \(tasks, n, ...\)"):
        backbone(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="takes token tensors by name"):
        build("bert", tmp_path)(torch.zeros(1, 2, 3))


# --- pooling ---


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_last_token_is_found_by_the_mask(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    assert backbone.adapter.pooling == "last"  # type: ignore[attr-defined]
    ids = torch.randint(50, (1, 1, 4))
    full = backbone({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    padded = {"input_ids": torch.cat([ids, ids], -1), "attention_mask": torch.tensor([[[1] * 4 + [0] * 4]])}
    torch.testing.assert_close(backbone(padded), full)


def test_left_padding_of_a_relative_position_decoder(tmp_path: Path):
    backbone = build("llama", tmp_path)
    ids = torch.randint(50, (1, 1, 4))
    full = backbone({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    padded = {"input_ids": torch.cat([ids, ids], -1), "attention_mask": torch.tensor([[[0] * 4 + [1] * 4]])}
    torch.testing.assert_close(backbone(padded), full, rtol=1e-4, atol=1e-5)


def test_pooling_choices(tmp_path: Path):
    hidden = {}
    for pooling in (None, "mean", "cls", "last"):
        backbone = build("bert", tmp_path, pooling=pooling)
        hidden[pooling] = backbone(batch(backbone))
    assert torch.equal(hidden[None], hidden["mean"])
    assert len({float(v.sum()) for v in hidden.values()}) == 3
    with pytest.raises(ValueError, match="pooling='max': expected one of mean, cls, last"):
        build("bert", tmp_path, pooling="max")


def test_timm_pooling_is_its_global_pool():
    mean = load_backbone("vit_tiny_patch16_224", pretrained=False, pooling="mean", **VIT)
    assert mean.model.global_pool == "avg"
    with pytest.raises(ValueError, match="choose a pooling"):
        load_backbone("test_resnet", pretrained=False, pooling="", **SMALL)


# --- raw items ---


def test_preprocess_images():
    backbone = load_backbone("timm/vit_tiny_patch16_224", pretrained=False, **VIT)
    pictures = [Image.new("L", (40, 30), 255), Image.new("RGBA", (20, 20), (255, 255, 255, 255))]
    out = backbone.preprocess(pictures)
    assert isinstance(out, Tensor)
    assert out.shape == (2, 3, 16, 16)
    mean, std = backbone.model.pretrained_cfg["mean"], backbone.model.pretrained_cfg["std"]  # type: ignore[index]
    torch.testing.assert_close(out[:, 0], torch.full((2, 16, 16), (1 - mean[0]) / std[0]))


def test_grey_images():
    backbone = load_backbone("test_resnet", pretrained=False, in_chans=1, **SMALL)
    out = backbone.preprocess([Image.new("RGB", (40, 40), (10, 10, 10))])
    assert isinstance(out, Tensor)
    assert out.shape == (1, 1, 32, 32)
    assert backbone(out[None]).shape == (1, 1, backbone.width)
    two = load_backbone("test_resnet", pretrained=False, in_chans=2, **SMALL)
    with pytest.raises(ValueError, match="takes 2 channels"):
        two.preprocess([Image.new("L", (40, 40))])


def test_preprocess_text(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)), *map(str, range(19))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    backbone = build("bert", tmp_path)
    tokens = backbone.preprocess(["a b c", "d", " ".join("abcdefgh" * 9)])
    assert isinstance(tokens, dict)
    assert tokens["input_ids"].shape == (3, 16)  # cut at max_position_embeddings
    assert tokens["attention_mask"].sum(1).tolist() == [5, 3, 16]
    assert backbone({k: v[None] for k, v in tokens.items()}).shape == (1, 3, 16)


def test_missing_tokenizer_files_are_noticed(tmp_path: Path):
    backbone = build("bert", tmp_path)
    assert backbone(batch(backbone)).shape == (2, 2, 16)
    with pytest.raises(ValueError, match="tokenizer"):
        backbone.preprocess(["hello world"])


def test_missing_image_processor(tmp_path: Path):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        build("vit", tmp_path).preprocess([Image.new("L", (9, 9))])


# --- names, weights, specs ---


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet81", {}, "unknown timm model 'resnet81'; nearest names: resnet"),
        ("vit_small_patch16_224.dyno", {}, "no weights tagged 'dyno'; its tags: .*dino"),
        ("test_resnet", {"image_size": 32}, "does not take these arguments.*image_size"),
        ("beit3_giant_patch14_224", {"pretrained": True}, "timm has no weights for beit3_giant"),
        ("test_resnet", {"checkpoint": "nowhere.pth"}, "'nowhere.pth' is not a file"),
        ("hf/some/model", {"checkpoint": "w.pth"}, "is for timm"),
        ("test_vit", {"sites": "bias"}, "sites='bias'"),
    ],
)
def test_wrong_arguments(name: str, args: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        load_backbone(name, **{"pretrained": False, **args})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_every_timm_network_has_an_image_size(name: str):
    backbone = load_backbone(name, pretrained=False, img_size=(32, 64))
    assert backbone.preprocess([Image.new("RGB", (90, 90))]).shape == backbone.example_inputs(1).raw.shape
    assert backbone.example_inputs(1).raw.shape == (1, 3, 32, 64)
    assert load_backbone(**backbone.spec()["load"]).fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize(("name", "way_out"), [("test_resnet", "checkpoint="), ("nobody/nothing", "local folder")])
def test_no_hub(name: str, way_out: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=f"no weights for '{name}': HF_HUB_OFFLINE is set.*{way_out}.*pretrained=False"):
        load_backbone(name)


def test_timm_checkpoint(tmp_path: Path):
    torch.manual_seed(5)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7, **VIT)  # its head is left behind
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone("vit_tiny_patch16_224", checkpoint=tmp_path / "w.pth", **VIT)
    x = batch(backbone)
    torch.testing.assert_close(
        backbone(x)[0], source.eval().forward_head(source.forward_features(x[0]), pre_logits=True)
    )
    with pytest.raises(ValueError, match=r"does not fit VisionTransformer: missing \['blocks\.2"):
        load_backbone("vit_tiny_patch16_224", checkpoint=tmp_path / "w.pth", **{**VIT, "depth": 3})


def test_timm_folder(tmp_path: Path):
    source = timm.create_model("test_resnet", num_classes=4, **SMALL).eval()
    timm.models.save_for_hf(source, tmp_path)
    backbone = load_backbone(tmp_path)
    x = backbone.example_inputs(2).tensor
    expected = source.forward_head(source.forward_features(x), pre_logits=True)
    torch.testing.assert_close(backbone.features(x), expected)


def test_transformers_folder_with_missing_weights(tmp_path: Path):
    build("llama", tmp_path).model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = load_backbone(tmp_path)
    assert again.fingerprint() == build("llama", tmp_path).fingerprint()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ValueError, match=r"lacks weights for \['layers\.2"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "bert"])
def test_spec_builds_the_same_backbone(name: str, tmp_path: Path):
    backbone = load(name, tmp_path, sites="ssf", last_k=1, seed=3)
    spec = json.loads(json.dumps(backbone.spec()))
    again = load_backbone(**spec["load"])
    assert again.spec() == spec
    assert again.sites == backbone.sites
    assert torch.equal(again(batch(again)), backbone(batch(backbone)))
    assert load(name, tmp_path, seed=4).fingerprint() != spec["fingerprint"]


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet", "bert"])
def test_dtype_by_name_or_as_such(name: str, dtype: Any, tmp_path: Path):
    backbone = load(name, tmp_path, dtype=dtype)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    load_args = json.loads(json.dumps(backbone.spec()["load"]))
    assert load_args["dtype"] == "bfloat16"
    assert load_backbone(**load_args).fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize("dtype", ["bf16", "auto", "int8", "nn", torch.int8, 16])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "bert"])
def test_unknown_dtype(name: str, dtype: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=f"dtype={dtype!r}: expected .* such as 'float32' or 'bfloat16'"):
        load(name, tmp_path, dtype=dtype)


def test_the_embedded_network_takes_a_dtype():
    assert load_backbone("mtl/glyphs", dtype="bfloat16")(torch.zeros(1, 2, 1, 32, 32)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='auto': expected"):
        load_backbone("mtl/glyphs", dtype="auto")


def test_auto_dtype_is_that_of_the_stored_weights(tmp_path: Path):
    load("bert", tmp_path, dtype="float64").model.save_pretrained(tmp_path)  # type: ignore[operator]
    backbone = load_backbone(tmp_path, dtype="auto")
    assert {p.dtype for p in backbone.parameters()} == {torch.float64}
    assert backbone.spec()["load"]["dtype"] == "auto"


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_backbone("vit_tiny_patch16_224", pretrained=False, **VIT)
    assert torch.equal(torch.rand(3), expected)


def test_an_option_set_as_an_attribute_is_refused():
    b = backbone()
    with pytest.raises(AttributeError, match=r"write backbone\.configure\(checkpoint_blocks=True\)"):
        b.checkpoint_blocks = True  # type: ignore[assignment]
    assert b.configure(checkpoint_blocks=True).options.checkpoint_blocks


def test_items_of_another_kind_are_refused_in_words():
    with pytest.raises(ValueError, match=r"item 0: a text cannot be decoded \(No such file or directory\)"):
        load_backbone("mtl/glyphs").preprocess(["a text"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["test_resnet", "vit"])
def test_raw_pixels_are_refused_wherever_images_go(name: str, dtype: torch.dtype, tmp_path: Path):
    backbone = load(name, tmp_path)
    pixels = torch.ones(2, 3, *backbone.example_inputs(1).shape[1:], dtype=dtype)
    labels = torch.tensor([[0, 1, 0]] * 2)
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=1)
    message = rf"inputs are {dtype}, but .* takes floats as backbone\.preprocess\(items\) makes"
    refusal = pytest.raises(ValueError, match=message)
    with refusal:
        backbone(pixels)
    with refusal:
        backbone(pixels, modulation_of(backbone))
    with refusal:
        backbone.features(pixels[0])
    with refusal:
        backbone.observe(pixels)
    with refusal:
        backbone.prepare(pixels)
    with refusal:
        backbone.with_prefix(pixels[0])
    with refusal:
        learner.adapt(mtl.Examples(pixels, labels))


def test_inputs_of_another_form_are_refused(tmp_path: Path):
    images, texts = load("test_resnet", tmp_path), load("bert", tmp_path)
    with pytest.raises(ValueError, match=r"images of shape \(32, 32, 3\): .* takes \(3, height, width\)"):
        images(torch.zeros(1, 2, 32, 32, 3))
    with pytest.raises(ValueError, match=r"inputs are tensors named pixel_values: .* takes one tensor of images"):
        images({"pixel_values": torch.zeros(1, 2, 3, 32, 32)})
    with pytest.raises(ValueError, match=r"input_ids are torch\.float32, but .* takes integers"):
        texts({"input_ids": torch.ones(1, 2, 5), "attention_mask": torch.ones(1, 2, 5)})
    tokens: Any = batch(texts)
    masked = texts({**tokens, "attention_mask": tokens["attention_mask"].float()})
    torch.testing.assert_close(masked, texts(tokens))
