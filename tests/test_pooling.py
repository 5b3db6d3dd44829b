"""Pooling and length of texts as the network's own files say, and which positions of images are averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from networks import HF_IMAGES, SIZES, TEXT
from torch import Tensor

import mtl

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)), *map(str, range(19))]
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.sentence_transformer.modules.normalize.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def encoder(folder: Path, files: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    base = {"config.json": {"model_type": "bert", **SIZES, **config}, "tokenizer_config.json": tokenizer}
    return write(folder, base | (files or {}))


def sentence_encoder(folder: Path, pooling: Any, *more: dict[str, str], **settings: Any) -> Path:
    modules = [{"idx": i, "name": str(i), **module} for i, module in enumerate([TRANSFORMER, POOLING, *more])]
    files = {"modules.json": modules, "1_Pooling/config.json": pooling}
    return encoder(folder, files | {"sentence_bert_config.json": settings})


def switches(*on: str) -> dict[str, Any]:
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 16} | {f"pooling_mode_{name}": name in on for name in names}


def load(folder: Path, **args: Any) -> Any:
    return mtl.load_backbone(folder, pretrained=False, **args)


# --- sentence-transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (switches("cls_token"), "cls"),
        (switches("mean_tokens"), "mean"),
        (switches("lasttoken"), "last"),
        (switches(), "mean"),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_is_that_of_the_files(config: dict[str, Any], expected: str, tmp_path: Path):
    backbone = load(sentence_encoder(tmp_path, config, NORMALIZE))
    assert backbone.adapter.pooling == expected
    assert backbone.identity()["features"]["pooling"] == expected
    tokens = backbone.preprocess(["a b c", "d"])
    hidden = backbone.model(**tokens).last_hidden_state
    by_hand = {
        "cls": hidden[:, 0],
        "mean": torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)]),
        "last": torch.stack([hidden[0, 4], hidden[1, 2]]),
    }
    torch.testing.assert_close(backbone.features(tokens), by_hand[expected])


@pytest.mark.parametrize("given", ["mean", "cls", "last"])
def test_an_argument_wins(given: str, tmp_path: Path):
    folder = sentence_encoder(tmp_path, switches("max_tokens"), DENSE, max_seq_length=6)
    backbone = load(folder, pooling=given, max_length=9)
    assert backbone.adapter.pooling == given
    assert backbone.preprocess(["a " * 30])["input_ids"].shape == (1, 9)


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (switches("max_tokens"), [], "pools by max, which mtl does not have: choose pooling='mean'"),
        (switches("cls_token", "mean_tokens"), [], "pools by cls and mean"),
        ({"pooling_mode": "weightedmean"}, [], "pools by weightedmean"),
        (switches("mean_tokens"), [DENSE], "ends in Dense of sentence-transformers, which .* pooling='mean', 'cls'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(pooling: Any, more: Any, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        load(sentence_encoder(tmp_path, pooling, *more))


def test_a_damaged_file_is_named(tmp_path: Path):
    (encoder(tmp_path) / "modules.json").write_text('[{"type":')
    with pytest.raises(ValueError, match=r"modules\.json is damaged"):
        load(tmp_path)


def test_texts_are_cut_and_lowered_as_the_files_say(tmp_path: Path):
    folder = sentence_encoder(tmp_path, switches("mean_tokens"), max_seq_length=6, do_lower_case=True)
    backbone = load(folder)
    tokens = backbone.preprocess(["A b " * 20, "a"])
    assert tokens["input_ids"].shape == (2, 6)
    assert tokens["input_ids"][0, 1] == WORDS.index("a")
    assert backbone.identity()["features"]["max_length"] == 6
    assert load(sentence_encoder(tmp_path, switches(), max_seq_length=400)).adapter.max_length == 16
    assert load(sentence_encoder(tmp_path, switches(), max_seq_length=None)).adapter.max_length == 16


def test_a_network_in_a_folder_of_its_own_is_read_as_the_files_around_it_say(tmp_path: Path):
    inner = {**TRANSFORMER, "path": "0_Transformer"}
    files = {"modules.json": [inner, POOLING], "1_Pooling/config.json": switches("cls_token")}
    where = encoder(tmp_path / "0_Transformer", {"sentence_bert_config.json": {"max_seq_length": 5}})
    assert load(where).adapter.pooling == "mean", "there is nothing around it yet"
    write(tmp_path, files)
    backbone = load(where)
    assert (backbone.adapter.pooling, backbone.adapter.max_length) == ("cls", 5)
    assert load(encoder(tmp_path / "other")).adapter.pooling == "mean"


@pytest.mark.parametrize("length", [1, 0, -3, 2.5, "8", 17])
def test_a_length_that_cannot_be_is_refused(length: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"max_length={length}: expected 2 to 16 tokens"):
        load(encoder(tmp_path), max_length=length)


def test_the_revision_counts_for_tokenizer_and_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for i, pooling in enumerate(("cls_token", "mean_tokens")):
        commit = str(i) * 40
        folder = tmp_path / "cache" / "models--some--encoder" / "snapshots" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        sentence_encoder(folder, switches(pooling))
        load(folder).model.save_pretrained(folder)
        words = WORDS if i else WORDS[:5] + WORDS[:4:-1]
        (folder / "vocab.txt").write_text("\n".join(words))
        backbone: Any = mtl.load_backbone("some/encoder", revision=commit, token="secret")
        assert backbone.adapter.pooling == pooling.partition("_")[0]
        assert backbone.preprocess(["a"])["input_ids"][0, 1] == words.index("a")
        assert "secret" not in json.dumps(backbone.spec())


def test_a_prompt_that_is_not_put_there_is_told(tmp_path: Path):
    folder = sentence_encoder(tmp_path, switches("mean_tokens"))
    prompts = {"prompts": {"query": "search: ", "document": ""}, "default_prompt_name": "query"}
    write(folder, {"config_sentence_transformers.json": prompts})
    with pytest.warns(UserWarning, match="puts 'search: ' before every text"):
        load(folder)


def test_it_equals_sentence_transformers(tmp_path: Path):
    """Whatever else lies there: the features before they are normalised."""
    library = pytest.importorskip("sentence_transformers", reason='pip install "mtl[text]"')
    load(encoder(tmp_path)).model.save_pretrained(tmp_path)
    sentence_encoder(tmp_path, switches("cls_token"), max_seq_length=7)
    backbone = mtl.load_backbone(tmp_path)
    texts = ["a b c d e f g h i j", "z"]
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    torch.testing.assert_close(backbone.features(backbone.preprocess(texts)), torch.tensor(expected))


# --- how long a text may be -------------------------------------------------------------------------------------------

ROBERTA = {**SIZES, "max_position_embeddings": 18, "pad_token_id": 1}
LIMITS: dict[str, tuple[dict[str, Any], int | None]] = {
    "bert": (TEXT["bert"], 16),
    "roberta": (ROBERTA, 16),
    "xlm-roberta": (ROBERTA, 16),
    "camembert": (ROBERTA, 16),
    "mpnet": (ROBERTA, 16),
    "longformer": ({**ROBERTA, "attention_window": 8}, 16),
    "ibert": (ROBERTA, 16),
    "esm": ({**ROBERTA, "mask_token_id": 2}, 16),
    "mra": (SIZES, 16),
    "gpt2": (TEXT["gpt2"], 16),
    "opt": ({**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}, 16),
    "llama": (TEXT["llama"], 16),
    "mpt": ({"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 16, "vocab_size": 50}, 16),
    "t5": (TEXT["t5"], None),
    "deberta-v2": ({**TEXT["deberta-v2"], "position_biased_input": False}, None),
    "bloom": ({"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}, None),
    "xlnet": ({"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 50}, None),
}


def tokens_of(length: int) -> dict[str, Tensor]:
    ids = torch.randint(4, 50, (1, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", LIMITS)
def test_the_longest_text_is_known(name: str, tmp_path: Path):
    config, limit = LIMITS[name]
    write(tmp_path, {"config.json": {"model_type": name, **config}})
    backbone = load(tmp_path, sites="none")
    assert backbone.adapter.limit == limit
    assert backbone.features(tokens_of(limit or 60)).isfinite().all()
    if limit is None:
        assert load(tmp_path, sites="none", max_length=500).adapter.max_length == 500
        return
    with pytest.raises(ValueError, match=rf"texts of {limit + 1} tokens: .* takes {limit}; cut them"):
        backbone.features(tokens_of(limit + 1))
    with pytest.raises(ValueError, match=rf"max_length={limit + 1}: expected 2 to {limit} tokens"):
        load(tmp_path, max_length=limit + 1)


def test_a_long_text_is_cut_to_the_positions_without_a_limit_of_the_tokenizer(tmp_path: Path):
    encoder(tmp_path, {"config.json": {"model_type": "roberta", **ROBERTA}})
    backbone = load(tmp_path)
    tokens = backbone.preprocess(["a " * 40])
    assert tokens["input_ids"].shape == (1, 16)
    assert backbone.features(tokens).isfinite().all()


def test_a_tokenizer_that_gives_no_mask_is_asked_for_one(tmp_path: Path):
    tokenizer = {"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids"]}
    backbone = load(encoder(tmp_path, {"tokenizer_config.json": tokenizer}))
    together, alone = (backbone.features(backbone.preprocess(texts)) for texts in (["a", "b c d e"], ["a"]))
    torch.testing.assert_close(together[:1], alone)


# --- images -----------------------------------------------------------------------------------------------------------

VIT = HF_IMAGES["vit"]
TOKENS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": (VIT, 1),
    "deit": (VIT, 2),
    "beit": (VIT, 1),
    "dinov2": (VIT, 1),
    "dinov2_with_registers": ({**VIT, "num_register_tokens": 3}, 4),
    "dinov3_vit": ({**VIT, "num_register_tokens": 3}, 4),
    "pixio": ({**VIT, "n_cls_tokens": 3}, 3),
    "clip_vision_model": (VIT, 1),
    "siglip_vision_model": (VIT, 0),
    "ijepa": (VIT, 0),
}


@pytest.mark.parametrize("name", TOKENS)
def test_the_mean_is_over_patches(name: str, tmp_path: Path):
    config, prefix = TOKENS[name]
    write(tmp_path, {"config.json": {"model_type": name, **config}})
    backbone = load(tmp_path)
    x = backbone.example_inputs(2).tensor
    hidden = backbone.model(x).last_hidden_state
    assert hidden.shape[1] == prefix + 4
    torch.testing.assert_close(backbone.features(x), hidden[:, prefix:].mean(1))
    assert backbone.adapter.positions(backbone.model).prefix == prefix
    torch.testing.assert_close(load(tmp_path, pooling="mean-all").features(x), hidden.mean(1))
    if prefix:
        torch.testing.assert_close(load(tmp_path, pooling="cls").features(x), hidden[:, 0])
    else:
        with pytest.raises(ValueError, match=r"pooling='cls': .* has no class token; pooling='mean'"):
            load(tmp_path, pooling="cls")


def test_detection_tokens_are_no_patches(tmp_path: Path):
    config = {**VIT, "image_size": [16, 16], "num_detection_tokens": 5, "model_type": "yolos"}
    backbone = load(write(tmp_path, {"config.json": config}))
    x = backbone.example_inputs(2).tensor
    hidden = backbone.model(x).last_hidden_state
    assert hidden.shape[1] == 1 + 4 + 5
    torch.testing.assert_close(backbone.features(x), hidden[:, 1:5].mean(1))


# --- generators that version 0.1.0 saved ------------------------------------------------------------------------------


def saved_by_the_first_version(backbone: Any, folder: Path, pooling: str | None) -> Path:
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=1)
    mtl.save_pretrained(learner, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["digest"]
    saved = config["backbone"]
    former = {"fingerprint": backbone.former_fingerprint(), "load": {**saved["load"], "pooling": pooling}}
    config["backbone"] = {"width": saved["width"], "modulation_width": saved["modulation_width"], **former}
    write(folder, {"config.json": config})
    return folder


@pytest.mark.parametrize(
    ("kind", "pooling", "then", "now"), [("vit", None, "mean-all", "mean"), ("vit", "cls", "cls", "cls")]
)
def test_it_reads_images_as_it_did(kind: str, pooling: str | None, then: str, now: str, tmp_path: Path):
    where = write(tmp_path / "net", {"config.json": {"model_type": kind, **VIT}})
    folder = saved_by_the_first_version(load(where, pooling=pooling), tmp_path / "saved", pooling)
    again: Any = mtl.from_pretrained(folder)
    assert again.backbone.adapter.pooling == then
    mtl.from_pretrained(folder, load(where, pooling=then))
    if then != now:
        with pytest.raises(ValueError, match="pooling: 'mean-all' there, 'mean' now"):
            mtl.from_pretrained(folder, load(where))
    mtl.save_pretrained(again, tmp_path / "later")
    assert mtl.from_pretrained(tmp_path / "later").backbone.spec() == again.backbone.spec()


def test_it_reads_texts_as_it_did(tmp_path: Path):
    where = sentence_encoder(tmp_path / "net", switches("cls_token"))
    assert load(where).adapter.pooling == "cls"
    folder = saved_by_the_first_version(load(where), tmp_path / "saved", None)
    again: Any = mtl.from_pretrained(folder)
    assert again.backbone.adapter.pooling == "mean"
