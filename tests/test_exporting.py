"""export: the public loaders alone give what the learner predicts, and what cannot be exported is refused."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from networks import VIT, build
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import mtl
from mtl.networks.modulation import Modulation

LABELS = torch.tensor([[0, 1, 2, 0, 1, 0], [2, 1, 0, 0, 2, 1]])


def adapted(backbone: mtl.Backbone, head: mtl.fewshot.AbstractHead | None = None) -> mtl.Adapted:
    """Two tasks with classes of unequal size, far enough from the identity that leaving any part out shows."""
    torch.manual_seed(0)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, hidden=16, gate=0.3)
    learner = mtl.MetaLearner(backbone, generator, head, inner_steps=2)
    return learner.adapt(mtl.Examples(inputs(backbone, 12), LABELS))


def inputs(backbone: mtl.Backbone, n: int) -> Any:
    """``n`` examples in two tasks."""
    return backbone.example_inputs(n).unflatten(2).raw


def second(batch: Any) -> Any:
    return mtl.Inputs.of(batch).map(lambda v: v[1]).raw


def assert_same(found: Tensor, reference: Tensor) -> None:
    """Same predictions, and logits that are equal after one positive factor per example."""
    factor = (found * reference).sum(1, keepdim=True) / reference.square().sum(1, keepdim=True)
    assert (factor > 0).all()
    assert torch.equal(found.argmax(1), reference.argmax(1))
    assert (found - factor * reference).abs().max() < 1e-4 * found.abs().max()


@pytest.mark.parametrize("sites", ["norm", "ssf"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet", "test_convnext", "test_efficientnet"])
def test_timm_loads_it(name: str, sites: Any, tmp_path: Path):
    backbone = build(name, tmp_path, sites=sites)
    task = adapted(backbone)
    exported = mtl.export(task, tmp_path / "out", task=1, class_names=["a", "b", "c"])
    assert exported.parity.agreeing == exported.parity.examples == 6

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    facts = config["mtl"]
    assert (facts["class_names"], config["label_names"]) == (["a", "b", "c"],) * 2
    assert facts["preprocessing"]["input_size"] == list(backbone.example_inputs(1).shape[1:])
    fresh = inputs(backbone, 40)
    reference = task.logits(fresh)[1]
    weights = str(tmp_path / "out" / "model.safetensors")
    by_path = timm.create_model(facts["architecture"], checkpoint_path=weights, num_classes=3, **facts["model_args"])
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    for model in (by_path, by_folder):
        assert_same(model.eval()(fresh[1]), reference)


def test_the_line_in_the_config_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = build("vit_tiny_patch16_224", tmp_path)
    task = adapted(backbone)
    line = mtl.export(task, tmp_path / "out").load
    monkeypatch.chdir(tmp_path / "out")
    fresh = inputs(backbone, 20)
    assert_same(eval(line, {"timm": timm}).eval()(fresh[0]), task.logits(fresh)[0])


def photos(n: int) -> list[Image.Image]:
    """Of other sizes than the networks take, so that scaling and cropping show."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(n, 3, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (60, 84), mode="bilinear").mul(255).byte()
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in fine]


def logits_of(lines: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **items: Any) -> Tensor:
    """What somebody gets who runs the printed lines in the folder."""
    monkeypatch.chdir(folder)
    names = dict(items)
    with torch.no_grad():
        exec(lines, names)
    return names["logits"]


IMAGE_NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {"img_size": 48}),
    ("test_resnet", {"pretrained_cfg_overlay": {"input_size": (3, 32, 32), "crop_pct": 0.6, "mean": (0.2, 0.3, 0.9)}}),
    ("test_convnext", {"pretrained_cfg_overlay": {"input_size": (3, 32, 32), "crop_mode": "squash"}}),
    ("vit_tiny_patch16_224", {"in_chans": 1}),
    ("mtl/glyphs", {}),
    ("mtl/efficientnet-lite0", {"pretrained": False, "img_size": 64}),
]


@pytest.mark.parametrize(("name", "options"), IMAGE_NETWORKS, ids=str)
def test_the_printed_lines_predict_the_same_of_images(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    backbone = mtl.load_backbone(name, **options) if name.startswith("mtl/") else build(name, tmp_path, **options)
    task, images = adapted(backbone), photos(10)
    exported = mtl.export(task, tmp_path / "out")
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, images=images)
    pixels = torch.stack([backbone.preprocess(images)] * 2)
    assert_same(found, task.logits(pixels)[0])
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["mtl"]
    assert (facts["predict"], facts["load"]) == (exported.predict, exported.load)
    assert exported.load in exported.predict


def test_it_is_a_backbone_again(tmp_path: Path):
    """A folder is what load_backbone takes, and its preprocessing is that of the first one."""
    backbone = build("test_resnet", tmp_path, in_chans=1)
    mtl.export(adapted(backbone), tmp_path / "one")
    again = mtl.load_backbone(tmp_path / "one")
    first, second_hand = (json.dumps(b.adapter.config) for b in (backbone, again))  # type: ignore[attr-defined]
    assert first == second_hand
    second_time = mtl.export(adapted(again), tmp_path / "two")
    assert second_time.parity.agreeing == 6


def test_the_embedded_backbone(tmp_path: Path):
    backbone = mtl.load_backbone("mtl/glyphs")
    assert mtl.export(adapted(backbone), tmp_path / "out").parity.agreeing == 6
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == "resnet10t"


@pytest.mark.parametrize("sites", ["norm", "ssf"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "deberta-v2", "vit", "gpt2"])
def test_transformers_loads_it(name: str, sites: Any, tmp_path: Path):
    backbone = build(name, tmp_path, sites=sites)
    task = adapted(backbone, mtl.Linear())
    mtl.export(task, tmp_path / "out", task=1)
    head = load_file(tmp_path / "out" / "head.safetensors")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    fresh = inputs(backbone, 20)
    examples = second(fresh)
    hidden = (model(**examples) if isinstance(examples, dict) else model(examples)).last_hidden_state
    features = hidden[:, -1] if name == "gpt2" else hidden[:, 1:].mean(1) if name == "vit" else hidden.mean(1)
    logits = features @ head["weight"].T + head["bias"]
    assert_same(logits, task.logits(fresh)[1])
    facts = json.loads((tmp_path / "out" / "mtl.json").read_text())["mtl"]
    assert facts["class_names"] == ["0", "1", "2"]
    assert facts["features"].startswith("last" if name == "gpt2" else "mean")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SENTENCES = ["a b c", "d", "q r s t u v w x y z a b c d e f g h", "z z", "b a"]


def text_network(folder: Path, **options: Any) -> mtl.Backbone:
    """With a tokenizer of letters."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return build("bert", folder, **options)


def test_a_tokenizer_comes_along(tmp_path: Path):
    task = adapted(text_network(tmp_path))
    mtl.export(task, tmp_path / "out")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b c")["input_ids"]
    assert tokens == transformers.AutoTokenizer.from_pretrained(tmp_path)("a b c")["input_ids"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_printed_lines_predict_the_same_of_texts(pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = text_network(tmp_path, pooling=pooling, max_length=9)
    task = adapted(backbone, mtl.Linear())
    exported = mtl.export(task, tmp_path / "out")
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, texts=SENTENCES)
    tokens = backbone.preprocess(SENTENCES)
    assert_same(found, task.logits({k: torch.stack([v, v]) for k, v in tokens.items()})[0])


@pytest.mark.parametrize("pooling", ["mean", "cls", "mean-all"])
def test_the_printed_lines_predict_the_same_of_images_of_transformers(
    pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    backbone = build("vit", tmp_path, pooling=pooling)
    task, images = adapted(backbone, mtl.Linear()), photos(10)
    exported = mtl.export(task, tmp_path / "out")
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, images=images)
    assert_same(found, task.logits(torch.stack([backbone.preprocess(images)] * 2))[0])
    if pooling != "cls":
        with pytest.raises(KeyError):
            transformers.pipeline("image-classification", str(tmp_path / "out"))(images[0])


def test_no_pipeline_draws_a_random_classifier(tmp_path: Path):
    backbone = text_network(tmp_path)
    before = backbone.model.config.num_labels  # type: ignore[union-attr]
    exported = mtl.export(adapted(backbone, mtl.Linear()), tmp_path / "out")
    assert "a pipeline would draw a random one" in exported.notes[-1]
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "out"))
    with pytest.raises(ValueError, match="empty sequence"):
        pipeline("a b c")
    assert backbone.model.config.num_labels == before  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_a_full_disk_leaves_nothing_behind(name: str, tmp_path: Path):
    task = adapted(build(name, tmp_path))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # like a full disk, for files beyond this size
    try:
        with pytest.raises(
            OSError, match=r"out could not be written: File too large; [\d,]+ bytes are free.*make room"
        ):
            mtl.export(task, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".out*"))
    mtl.export(task, tmp_path / "out")


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_files_have_the_mode_that_umask_says(name: str, tmp_path: Path):
    mtl.export(adapted(build(name, tmp_path)), tmp_path / "out")
    (tmp_path / "new").touch()
    modes = {p.stat().st_mode for p in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_probabilities_are_about_those_of_the_learner(tmp_path: Path):
    """A normalising head gives logits of another size than its plain classifier; the export evens that out."""
    backbone = build("test_resnet", tmp_path)
    task = adapted(backbone, mtl.Cosine(scale=20))
    exported = mtl.export(task, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    fresh = inputs(backbone, 20)
    assert (model(fresh[0]).softmax(1) - task.logits(fresh)[0].softmax(1)).abs().max() < 0.1
    assert "temperature" in exported.notes[0]


def test_half_precision_is_exported_in_full(tmp_path: Path):
    backbone = build("bert", tmp_path).to(torch.bfloat16)
    exported = mtl.export(adapted(backbone), tmp_path / "out")
    assert any("half precision" in note for note in exported.notes)
    assert {v.dtype for v in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", ["llama", "qwen3", "modernbert", "t5", "test_vit4"])
def test_what_no_weight_can_hold_is_refused(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no plain checkpoint that predicts the same: .*norm"):
        mtl.export(adapted(build(name, tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_classifiers_are_refused(tmp_path: Path):
    """LeViT's classifier begins with a batch norm, a distilled ViT has two."""
    networks: list[tuple[str, dict[str, Any]]] = [
        ("levit_128s", {"embed_dim": (16, 16, 16)}),
        ("deit_tiny_distilled_patch16_224", VIT),
    ]
    for name, args in networks:
        backbone = mtl.load_backbone(name, pretrained=False, **args)
        with pytest.raises(ValueError, match=r'to="pt2" and to="onnx" write'):
            mtl.export(adapted(backbone), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_a_checkpoint_that_predicts_otherwise_is_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever goes wrong between learner and file: here the modulation gets lost."""
    backbone = build(name, tmp_path)
    task = adapted(backbone)
    plain = mtl.networks.merge(backbone, Modulation.identity(1, backbone.modulation_width))
    monkeypatch.setattr("mtl.fewshot.exporting.plain.merge", lambda *_: plain)
    with pytest.raises(RuntimeError, match="loaded again, is not the learner"):
        mtl.export(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_arguments(tmp_path: Path):
    task = adapted(build("vit_tiny_patch16_224", tmp_path))
    with pytest.raises(ValueError, match="expected 3 names"):
        mtl.export(task, tmp_path / "out", class_names=["a", "b"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="choose another folder"):
        mtl.export(task, tmp_path / "taken")
    random = torch.get_rng_state()
    mtl.export(task, tmp_path / "out", inputs=second(inputs(task.model.backbone, 4)))
    assert torch.equal(torch.get_rng_state(), random)
