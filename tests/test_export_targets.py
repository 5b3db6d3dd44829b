"""export(to=...): each library loads what was written and predicts what the learner does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from networks import build
from test_exporting import adapted, inputs, logits_of, photos, second, text_network
from torch import Tensor

import mtl
from mtl.fewshot.adapted_task import AdaptedTask, Part
from mtl.fewshot.calibration import Calibration
from mtl.networks.modulation import Modulation

TEXTS = ["a b c", "d", "q r s t u v w x y z a", "z z", "b a"]
NAMES = ["bread", "salt", "tea"]


def probabilities(found: list[dict[str, Any]]) -> Tensor:
    """Of what a pipeline returns for one item, in the order of NAMES."""
    by_name = {row["label"]: row["score"] for row in found}
    return torch.tensor([by_name[name] for name in NAMES])


def of_second(task: mtl.Adapted, batch: Any) -> Tensor:
    """Logits of the second task, for inputs without a task axis."""
    return task.logits(mtl.Inputs.of(batch).map(lambda v: torch.stack([v, v])))[1]


def close(found: Tensor, reference: Tensor) -> None:
    assert (found - reference).abs().max() < 1e-4 * reference.abs().max().clamp_min(1)


# --- classes of transformers -----------------------------------------------------------------------------------------

WHOLE = ["bert", "roberta", "distilbert", "deberta-v2"]  # tanh, tanh, ReLU and GELU before their classifiers


@pytest.mark.parametrize("name", WHOLE)
def test_a_text_network_classifies(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, pooling="cls")
    task = adapted(backbone, mtl.Linear())
    exported = mtl.export(task, tmp_path / "out", task=1, class_names=NAMES)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    fresh = inputs(backbone, 20)
    close(model(**second(fresh)).logits, task.logits(fresh)[1])
    assert model.config.id2label == dict(enumerate(NAMES))
    assert exported.load == 'transformers.AutoModelForSequenceClassification.from_pretrained(".")'
    assert not (tmp_path / "out" / "head.safetensors").exists()


@pytest.mark.parametrize(("name", "pooling"), [("vit", "cls"), ("dinov2", "mean"), ("dinov2", "cls"), ("swin", "mean")])
def test_an_image_network_classifies(name: str, pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import networks

    swin = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    monkeypatch.setitem(networks.HF_IMAGES, "dinov2", networks.HF_IMAGES["vit"])
    monkeypatch.setitem(networks.HF_IMAGES, "swin", swin)
    backbone = build(name, tmp_path, pooling=pooling)
    task = adapted(backbone, mtl.Linear())
    mtl.export(task, tmp_path / "out", task=1)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    fresh = inputs(backbone, 10)
    close(model(second(fresh)).logits, task.logits(fresh)[1])


def test_the_pipeline_of_texts(tmp_path: Path):
    backbone = text_network(tmp_path, pooling="cls", max_length=9)
    task = adapted(backbone, mtl.Linear())
    mtl.export(task, tmp_path / "out", task=1, class_names=NAMES)
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    found = torch.stack([probabilities(rows) for rows in classify(TEXTS, truncation=True)])  # type: ignore[arg-type]
    close(found, of_second(task, backbone.preprocess(TEXTS)).softmax(1))


def test_the_pipeline_of_images(tmp_path: Path):
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    backbone, images = build("vit", tmp_path, pooling="cls"), photos(6)
    task = adapted(backbone, mtl.Linear())
    mtl.export(task, tmp_path / "out", task=1, class_names=NAMES)
    classify = transformers.pipeline("image-classification", str(tmp_path / "out"))
    found = torch.stack([probabilities(classify(image, top_k=3)) for image in images])  # type: ignore[arg-type]
    close(found, of_second(task, backbone.preprocess(images)).softmax(1))


def test_why_there_is_no_class_is_said(tmp_path: Path):
    note = mtl.export(adapted(text_network(tmp_path), mtl.Linear()), tmp_path / "out").notes[-1]
    assert "as BertForSequenceClassification does not classify mean of last_hidden_state" in note


# --- peft ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "test_convnext"])
def test_peft_loads_it_into_a_network_of_timm(name: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    import timm

    backbone = build(name, tmp_path)
    task = adapted(backbone, mtl.Linear())
    mtl.export(task, tmp_path / "out", task=1, to="peft")
    facts = json.loads((tmp_path / "out" / "mtl.json").read_text())["mtl"]
    load = backbone.spec()["load"]
    args = {k: load[k] for k in ("img_size", "patch_size", "depth", "embed_dim", "num_heads") if k in load}
    base = timm.create_model(load["name"], num_classes=3, **args)
    base.load_state_dict(backbone.model.state_dict(), strict=False)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    fresh = inputs(backbone, 10)
    close(model(second(fresh)), task.logits(fresh)[1])
    assert facts["adapter"] == "LN_TUNING"
    adapter = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert adapter < 0.3 * sum(v.numel() * 4 for v in backbone.model.state_dict().values())


@pytest.mark.parametrize(("name", "pooling"), [("bert", "cls"), ("roberta", "cls"), ("bert", "mean"), ("gpt2", "last")])
def test_peft_loads_it_into_a_network_of_transformers(name: str, pooling: str, tmp_path: Path):
    pytest.importorskip("peft")
    backbone = text_network(tmp_path, pooling=pooling) if name == "bert" else build(name, tmp_path, pooling=pooling)
    task = adapted(backbone, mtl.Linear())
    exported = mtl.export(task, tmp_path / "out", task=1, to="peft")
    assert exported.parity.agreeing == 6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    inside = pooling == "cls"
    assert config["peft_type"] == "LN_TUNING"
    assert config["task_type"] == ("SEQ_CLS" if inside else "FEATURE_EXTRACTION")
    assert (tmp_path / "out" / "head.safetensors").exists() != inside


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_lines_of_an_adapter_predict_the_same(pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("peft")
    backbone = text_network(tmp_path, pooling=pooling, max_length=9)
    backbone.model.save_pretrained(tmp_path)  # type: ignore[operator]
    task = adapted(backbone, mtl.Linear())
    exported = mtl.export(task, tmp_path / "out", task=1, to="peft")
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, texts=TEXTS)
    close(found, of_second(task, backbone.preprocess(TEXTS)))


def scaled_alone(task: AdaptedTask, shift: float) -> AdaptedTask:
    """With norms as they are, and linear layers scaled; the shift is of one of them."""
    sites, (part,) = task.backbone.sites, task.parts
    scales = [torch.rand(s.width) + 0.5 if "Norm" not in s.name else torch.ones(s.width) for s in sites]
    shifts = torch.zeros(task.backbone.modulation_width)
    shifts[-1] = shift
    return replace(task, parts=(replace(part, scale=torch.cat(scales), shift=shifts),))


def test_scale_of_linear_layers_is_an_ia3_adapter(tmp_path: Path):
    pytest.importorskip("peft")
    task = scaled_alone(adapted(build("bert", tmp_path, sites="ssf"), mtl.Linear()).task(1), 0)
    assert mtl.export(task, tmp_path / "out", to="peft").parity.error < 1e-4
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "IA3"
    with pytest.raises(ValueError, match="one adapter of peft changes norms"):
        mtl.export(scaled_alone(task, 0.1), tmp_path / "other", to="peft")


# --- sentence-transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [mtl.Linear(), mtl.Cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_sentence_transformers_loads_it(pooling: str, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sentence_transformers")
    backbone = text_network(tmp_path, pooling=pooling, max_length=9)
    task = adapted(backbone, head)
    exported = mtl.export(task, tmp_path / "out", task=1, to="sentence-transformers")
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, texts=TEXTS)
    close(found, of_second(task, backbone.preprocess(TEXTS)))  # also of a head that normalises
    assert not any("temperature" in note for note in exported.notes)
    kinds = [m["type"].rpartition(".")[2] for m in json.loads((tmp_path / "out" / "modules.json").read_text())]
    assert kinds[:2] == ["Transformer", "Pooling"]
    assert ("Normalize" in kinds) == isinstance(head, mtl.Cosine)


def test_images_are_no_sentences(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="reads no texts"):
        mtl.export(adapted(build("test_resnet", tmp_path)), tmp_path / "out", to="sentence-transformers")


# --- programs --------------------------------------------------------------------------------------------------------

PROGRAMS: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {}),
    ("vit_tiny_patch16_224", {"levels": "all", "sites": "none"}),
    ("bert", {"levels": "all"}),
]


def installed(to: str) -> None:
    if to == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.parametrize("to", ["pt2", "onnx"])
@pytest.mark.parametrize(("name", "options"), PROGRAMS, ids=str)
def test_a_program_gives_the_logits(name: str, options: dict[str, Any], to: Any, tmp_path: Path):
    installed(to)
    backbone = build(name, tmp_path, **options)
    task = adapted(backbone)
    exported = mtl.export(task, tmp_path / "out", task=1, class_names=NAMES, to=to)
    assert exported.parity.error < 1e-3
    assert not any("temperature" in note for note in exported.notes)
    few = second(inputs(backbone, 22))  # another number of examples than it was traced with
    close(run(tmp_path / "out", to, few), of_second(task, few))
    described = json.loads((tmp_path / "out" / "mtl.json").read_text())["mtl"]
    assert (described["class_names"], described["outputs"]) == (NAMES, {"logits": ["n", 3]})


def run(folder: Path, to: str, batch: Any) -> Tensor:
    tensors = mtl.Inputs.of(batch).tensors
    named = tensors if "input_ids" in tensors else {"images": tensors[""]}
    if to == "pt2":
        return torch.export.load(folder / "model.pt2").module()(*named.values())
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in named.items()})[0])


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_the_lines_of_a_program_predict_the_same_of_texts(to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of other lengths than it was traced with, and with padding."""
    installed(to)
    backbone = text_network(tmp_path, max_length=16)
    task = adapted(backbone)
    exported = mtl.export(task, tmp_path / "out", to=to)
    texts = [*TEXTS, "a b c d e f g h i j k l m n o p q r s t u v"]
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, texts=texts)
    tokens = backbone.preprocess(texts)
    assert tokens["input_ids"].shape == (6, 16)
    close(found, task.logits({k: torch.stack([v, v]) for k, v in tokens.items()})[0])


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_the_lines_of_a_program_predict_the_same_of_images(to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    installed(to)
    backbone, images = build("test_convnext", tmp_path, in_chans=1), photos(5)
    task = adapted(backbone)
    exported = mtl.export(task, tmp_path / "out", to=to)
    found = logits_of(exported.predict, tmp_path / "out", monkeypatch, images=images)
    close(found, task.logits(torch.stack([backbone.preprocess(images)] * 2))[0])


def test_a_program_holds_a_mixture_of_networks(tmp_path: Path):
    backbone = build("test_resnet", tmp_path)
    task = adapted(backbone).task(1)
    (part,) = task.parts
    plain = Part(torch.randn_like(part.weight), part.bias)
    mixed = replace(task, parts=(part, plain))
    with pytest.raises(
        ValueError, match=r'a mixture of candidates is no single network; to="pt2".*mtl adapt --no-cross-validate'
    ):
        mtl.export(mixed, tmp_path / "out")
    assert mtl.export(mixed, tmp_path / "out", to="pt2").parity.error < 1e-4
    few = second(inputs(backbone, 8))
    close(run(tmp_path / "out", "pt2", few), mixed.logits(few))


class Reluctant(torch.nn.Module):
    """Asks a number of its inputs for its value."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x if float(x.sum()) > 1e9 else x + 0)


def test_a_network_that_cannot_be_traced_is_named(tmp_path: Path):
    task = adapted(build("test_resnet", tmp_path)).task(0)
    task.backbone.model = Reluctant(task.backbone.model)
    with pytest.raises(ValueError, match=r"test_resnet: torch\.export cannot trace its code .*leave to= out") as error:
        mtl.export(task, tmp_path / "out", to="pt2")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [None, "peft", "pt2"])
def test_a_task_from_a_file(to: Any, tmp_path: Path):
    """There is no support set any more; what was adapted in half an hour is exported next year."""
    if to == "peft":
        pytest.importorskip("peft")
    task = adapted(text_network(tmp_path, pooling="cls"), mtl.Linear()).task(1)
    replace(task, calibration=Calibration(2.5)).save(tmp_path / "one.mtl")
    again = mtl.load_task(tmp_path / "one.mtl", task.backbone)
    exported = mtl.export(again, tmp_path / "out", to=to)
    facts = json.loads((tmp_path / "out" / "mtl.json").read_text())["mtl"]
    assert facts["temperature"] == 2.5
    assert "softmax(logits / 2.5)" in exported.notes[0]
    assert (exported.parity.examples, exported.class_names) == (8, ("0", "1", "2"))
    with pytest.raises(ValueError, match="task=1: a task from a file is a single one"):
        mtl.export(again, tmp_path / "other", task=1)


def test_the_network_runs_for_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Features that were computed for the learner would agree with themselves, whatever was written."""
    backbone = build("test_resnet", tmp_path, sites="none")
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), mtl.Linear(), inner_steps=1)
    ready = backbone.with_prefix(backbone.example_inputs(6))
    task = learner.adapt(mtl.Examples(mtl.Inputs.of(ready).with_task_axis().raw, torch.arange(6)[None] % 3))
    other = build("test_resnet", tmp_path, sites="none", seed=1)
    broken = mtl.networks.merge(other, Modulation.identity(1, 0))
    monkeypatch.setattr("mtl.fewshot.exporting.plain.merge", lambda *_: broken)
    with pytest.raises(RuntimeError, match="loaded again, is not the learner"):
        mtl.export(task, tmp_path / "out")


def test_another_target(tmp_path: Path):
    task = adapted(build("test_resnet", tmp_path))
    wrong: Any = "tensorflow"
    with pytest.raises(ValueError, match="to='tensorflow': expected one of 'timm', 'transformers', 'peft'"):
        mtl.export(task, tmp_path / "out", to=wrong)
    with pytest.raises(ValueError, match="is a network of timm; leave to= out"):
        mtl.export(task, tmp_path / "out", to="transformers")
    assert mtl.export(task, tmp_path / "out", to="timm").parity.agreeing == 6


@pytest.mark.parametrize(
    ("to", "module"), [("peft", "peft"), ("onnx", "onnxscript"), ("sentence-transformers", "sentence_transformers")]
)
def test_a_missing_package_is_named(to: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "mtl\['):
        mtl.export(adapted(text_network(tmp_path)), tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_pictures_keep_their_preprocessing(tmp_path: Path):
    """The line that loads a timm folder brings the preprocessing: a grey picture at a size of its own."""
    import timm

    backbone = build("test_resnet", tmp_path, pretrained_cfg_overlay={"input_size": (3, 40, 40), "crop_pct": 0.7})
    mtl.export(adapted(backbone), tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = photos(1)[0]
    assert torch.equal(torch.as_tensor(transform(picture)), backbone.preprocess([picture])[0])
