"""A transformers checkpoint: its own files, and the classifier in a file beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mtl.fewshot.exporting.plain import AS_A_PROGRAM, Plain, Subject, Written, some, to_plain
from mtl.fewshot.exporting.preparing import mode_of, processor_of, texts_of
from mtl.fewshot.exporting.transformers_classes import TASKS, NoSuchClassError, Whole, logits_of, with_classifier
from mtl.networks.backbones import HFImages, HFText

LOAD = 'transformers.AutoModel.from_pretrained(".")'
POOLED = {
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
    "cls": "hidden[:, 0]",
    "last": "hidden[torch.arange(len(hidden)), mask.squeeze(-1).cumsum(1).argmax(1)]",
}
"""``hidden`` ``(n, length, width)`` of texts and ``mask`` ``(n, length, 1)`` to features, by pooling."""
TEXTS = """\
import torch, transformers
from safetensors.torch import load_file

model, head = {load}.eval(), load_file("head.safetensors")
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
batch = tokenizer({texts}, padding=True, truncation=True, return_attention_mask=True, return_tensors="pt")
hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
logits = {pooled} @ head["weight"].T + head["bias"]"""
IMAGES = """\
import torch, transformers
from safetensors.torch import load_file

model, head = {load}.eval(), load_file("head.safetensors")
processor = transformers.AutoImageProcessor.from_pretrained(".")
hidden = model(**processor([image.convert("{mode}") for image in images], return_tensors="pt")).last_hidden_state
logits = {pooled} @ head["weight"].T + head["bias"]"""
WHOLE_TEXTS = """\
import torch, transformers

model = {load}.eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
batch = tokenizer({texts}, padding=True, truncation=True, return_attention_mask=True, return_tensors="pt")
logits = model(**batch).logits"""
WHOLE_IMAGES = """\
import torch, transformers

model = {load}.eval()
processor = transformers.AutoImageProcessor.from_pretrained(".")
logits = model(**processor([image.convert("{mode}") for image in images], return_tensors="pt")).logits"""
NOTE = (
    "the classifier lies beside the network, as {why}: a pipeline would draw a random one, so the config counts no "
    "labels and it fails; predict with the lines that the folder comes with"
)
PIPELINE = 'transformers.pipeline("{task}", folder) predicts with it too'


def write_transformers(subject: Subject, draft: Path) -> Written:
    """Write the files into ``draft`` and load them again.

    The network is one that classifies where transformers has a class that computes exactly this classifier.
    """
    plain, names = to_plain(subject), subject.names
    write_network(plain, draft)
    try:
        whole = with_classifier(plain, names, draft)
    except NoSuchClassError as why:
        return _beside(plain, names, draft, str(why))
    return _inside(plain, names, draft, whole)


def write_network(plain: Plain, folder: Path) -> None:
    """The network without classifier, and tokenizer or image processor."""
    model = plain.model
    assert isinstance(model, transformers.PreTrainedModel)
    model.config.id2label, model.config.label2id = {}, {}  # of the merged copy; two made-up labels by default
    model.save_pretrained(folder)
    if (processor := processor_of(_adapter(plain))) is not None:
        processor.save_pretrained(folder)


def write_head(weight: Tensor, bias: Tensor, folder: Path) -> dict[str, Tensor]:
    """A classifier in ``head.safetensors``, as it is read again."""
    head = {"weight": weight.cpu().float().contiguous(), "bias": bias.cpu().float().contiguous()}
    (folder / "head.safetensors").write_bytes(save(head))
    return load_file(folder / "head.safetensors")


def _beside(plain: Plain, names: Sequence[str], draft: Path, why: str) -> Written:
    """Network and classifier in two files."""
    head, again = write_head(plain.weight, plain.bias, draft), _auto_model(draft)
    facts = _facts(plain, type(again).__name__) | {"logits": "features @ weight.T + bias, both in head.safetensors"}
    return Written(
        LOAD,
        _lines(_adapter(plain), again),
        "mtl.json",
        {"num_classes": len(names)},
        facts,
        lambda inputs: plain.backbone.features(inputs, again).float() @ head["weight"].T + head["bias"],
        notes=(NOTE.format(why=why),),
    )


def _inside(plain: Plain, names: Sequence[str], draft: Path, whole: Whole) -> Written:
    """Network and classifier in one."""
    whole.model.save_pretrained(draft)
    load, adapter = LOAD.replace("AutoModel", whole.auto), _adapter(plain)
    again, info = getattr(transformers, whole.auto).from_pretrained(draft, output_loading_info=True)
    if lost := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise ValueError(f"transformers.{whole.auto} does not take {some(lost)} of its own files; {AS_A_PROGRAM}")
    again.eval()
    if isinstance(adapter, HFText):
        lines = WHOLE_TEXTS.format(load=load, texts=texts_of(adapter))
    else:
        lines = WHOLE_IMAGES.format(load=load, mode=mode_of(adapter))
    return Written(
        load,
        lines,
        "mtl.json",
        {"num_classes": len(names)},
        _facts(plain, type(again).__name__) | {"logits": f"of {type(again).__name__}", "head": whole.head},
        lambda inputs: logits_of(again, inputs.to("cpu", torch.float32).raw),
        notes=(PIPELINE.format(task=TASKS[adapter.reads]), *_differences(adapter)),
    )


def _facts(plain: Plain, architecture: str) -> dict[str, Any]:
    processor = processor_of(_adapter(plain))
    return {
        "architecture": architecture,
        "model_args": {},
        "preprocessing": None if processor is None else type(processor).__name__,
        "features": _adapter(plain).formula(),
    }


def _differences(adapter: HFImages | HFText) -> Iterator[str]:
    """What a pipeline prepares otherwise than the lines that come with the folder."""
    if isinstance(adapter, HFText):
        yield "a pipeline cuts no text: pass truncation=True where one may be longer than the network takes"
        if adapter.lower_case:
            yield "the network was trained on lower case, which a pipeline does not make: lower the texts"
    elif mode_of(adapter) == "L":
        yield "the network sees grey, and a pipeline makes RGB of every image: use the lines"


def _adapter(plain: Plain) -> HFImages | HFText:
    adapter = plain.backbone.adapter
    assert isinstance(adapter, HFImages | HFText)
    return adapter


def features_line(plain: Plain, model: Any, call: str) -> str:
    """A line of Python from ``batch`` to ``features``, for a network that is called like that."""
    adapter = plain.backbone.adapter
    if isinstance(adapter, HFText):
        hidden = f"hidden, mask = {call}.last_hidden_state, batch['attention_mask'].unsqueeze(-1)"
        return f"{hidden}\nfeatures = {POOLED[adapter.pooling]}"
    if isinstance(adapter, HFImages):
        return f"hidden = {call}.last_hidden_state\nfeatures = {_pooled_images(adapter, model)}"
    return f"features = {call}"


def _lines(adapter: HFImages | HFText, model: Any) -> str:
    """Lines of Python from items to logits."""
    if isinstance(adapter, HFText):
        return TEXTS.format(load=LOAD, texts=texts_of(adapter), pooled=POOLED[adapter.pooling])
    return IMAGES.format(load=LOAD, pooled=_pooled_images(adapter, model), mode=mode_of(adapter))


def _pooled_images(adapter: HFImages, model: Any) -> str:
    """``hidden``, which are tokens or maps, to features."""
    example = adapter.example(2)
    hidden = model(example).last_hidden_state
    if hidden.dim() == 4:
        features, axes = adapter.features(model, example), (2, 3)
        if features.shape != hidden.shape[:2] or not torch.allclose(features, hidden.mean(axes), rtol=1e-3, atol=1e-5):
            axes = (1, 2)
        return f"hidden.mean({axes})"
    if adapter.pooling == "cls":
        return "hidden[:, 0]"
    patches = f"[:, {adapter.prefix}:{-adapter.suffix or ''}]" if adapter.pooling == "mean" else ""
    return f"hidden{patches}.mean(1)"


def _auto_model(folder: Path) -> nn.Module:
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    # transformers silently fills missing weights with random ones. Poolers are not used here.
    lost = [k for k in info["missing_keys"] if "pooler" not in k.split(".")] + list(info["unexpected_keys"])
    if lost:
        raise ValueError(
            f"transformers.AutoModel builds a {type(model).__name__}, which does not take {some(lost)}, so this "
            f"network has no plain checkpoint; {AS_A_PROGRAM}"
        )
    return model.eval()
