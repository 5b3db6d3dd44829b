"""Checkpoints of several networks, and of networks that mtl does not read: one by name, or one line says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from networks import HF_IMAGES, SIZES, TEXT

import mtl

TEXTS = {**SIZES, "projection_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGES = {**HF_IMAGES["vit"], "projection_dim": 8}
del IMAGES["vocab_size"], IMAGES["max_position_embeddings"]
TWO = {"text_config": TEXTS, "vision_config": IMAGES, "projection_dim": 8}


def folder(where: Path, kind: str, config: dict[str, Any]) -> Path:
    (where / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return where


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip", "chinese_clip", "altclip", "clipseg", "groupvit", "owlvit"])
def test_a_tower_is_chosen(kind: str, tmp_path: Path):
    where = folder(tmp_path, kind, TWO)
    with pytest.raises(ValueError, match=r"has several networks: choose tower='\w+' or tower='\w+'$"):
        mtl.load_backbone(where, pretrained=False)
    with pytest.raises(ValueError, match=r"tower='audio': .* has (text and vision|vision and text)$"):
        mtl.load_backbone(where, pretrained=False, tower="audio")
    texts: Any = mtl.load_backbone(where, pretrained=False, tower="text")
    images: Any = mtl.load_backbone(where, pretrained=False, tower="vision")
    assert texts.adapter.max_length == 16 or kind == "altclip"
    assert texts.example_inputs(1).named
    assert images.example_inputs(1).raw.shape == (1, 3, 16, 16)
    for backbone in (texts, images):
        again = mtl.load_backbone(**json.loads(json.dumps(backbone.spec()["load"])))
        assert again.fingerprint() == backbone.fingerprint()


def test_the_tower_has_the_weights_of_the_checkpoint(tmp_path: Path):
    torch.manual_seed(0)
    whole = transformers.AutoModel.from_config(transformers.CLIPConfig(**TWO)).eval()
    whole.save_pretrained(tmp_path)
    backbone = mtl.load_backbone(tmp_path, tower="vision")
    x = backbone.example_inputs(2).tensor
    expected = whole.vision_model(x).last_hidden_state[:, 1:].mean(1)
    torch.testing.assert_close(backbone.features(x), expected)


def test_a_single_network_has_no_tower(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tower='text': .* is a single network: leave tower out"):
        mtl.load_backbone(folder(tmp_path, "bert", TEXT["bert"]), pretrained=False, tower="text")
    with pytest.raises(ValueError, match=r"does not take these arguments.*tower"):
        mtl.load_backbone("test_resnet", pretrained=False, tower="vision")


def test_an_encoder_alone_is_enough(tmp_path: Path):
    """As the sentence encoders of the T5 family are stored."""
    encoder = transformers.T5EncoderModel(transformers.T5Config(**TEXT["t5"])).eval()
    encoder.save_pretrained(tmp_path)
    backbone = mtl.load_backbone(tmp_path, sites="none")
    tokens: Any = backbone.example_inputs(2).raw
    torch.testing.assert_close(backbone.features(tokens), encoder(**tokens).last_hidden_state.mean(1))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("wav2vec2", {**SIZES, "conv_dim": [8], "conv_kernel": [2], "conv_stride": [2], "num_feat_extract_layers": 1,
                      "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}, "reads audio"),
        ("whisper", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                     "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}, "reads audio"),
        ("vision-encoder-decoder", {"encoder": {"model_type": "vit", **IMAGES}, "decoder": {"model_type": "gpt2"}},
         "AutoModel does not build .*save the encoder to a folder of its own"),
        ("lxmert", SIZES, "visual_feats|cannot be read"),
        ("perceiver", {"d_model": 16, "num_latents": 4, "d_latents": 16}, "reads inputs; mtl reads images and texts"),
        ("videomae", HF_IMAGES["vit"], "not enough values|cannot be read as a network of images or texts"),
        ("no-such-kind", SIZES, "AutoModel does not build"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_in_one_line(kind: str, config: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message) as raised:
        mtl.load_backbone(folder(tmp_path, kind, config), pretrained=False)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_forward_that_fails_is_said_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError("'Output' has no\nattribute 'last_hidden_state'")

    monkeypatch.setattr(transformers.BertModel, "forward", fail)
    monkeypatch.setattr(transformers.ViTModel, "forward", fail)
    config = {**TEXT, **HF_IMAGES}[kind]
    with pytest.raises(ValueError, match=r"cannot be read as a network of images or texts \(AttributeError: 'Output'"):
        mtl.load_backbone(folder(tmp_path, kind, config), pretrained=False)
