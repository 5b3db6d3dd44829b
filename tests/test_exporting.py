"""export: the public loaders alone give what the learner predicts, and what cannot be exported is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from networks import VIT, build
from safetensors.torch import load_file
from torch import Tensor

import mtl
from mtl.fewshot.exporting.plain import Plain, to_plain
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


def test_a_tokenizer_comes_along(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    task = adapted(build("bert", tmp_path))
    mtl.export(task, tmp_path / "out")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b c")["input_ids"]
    assert tokens == transformers.AutoTokenizer.from_pretrained(tmp_path)("a b c")["input_ids"]


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
    assert "half precision" in exported.notes[-1]
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
        with pytest.raises(ValueError, match=r"adapted\.merge"):
            mtl.export(adapted(backbone), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_a_checkpoint_that_predicts_otherwise_is_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever goes wrong between learner and file: here the modulation gets lost."""
    backbone = build(name, tmp_path)
    task = adapted(backbone)
    plain = mtl.networks.merge(backbone, Modulation.identity(1, backbone.modulation_width)).model

    def wrong(adapted: mtl.Adapted, task: int) -> Plain:
        made = to_plain(adapted, task)
        return Plain(made.backbone, plain, made.weight, made.bias)

    monkeypatch.setattr("mtl.fewshot.exporting.folder.to_plain", wrong)
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
