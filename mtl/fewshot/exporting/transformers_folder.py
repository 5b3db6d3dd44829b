"""A transformers checkpoint: its own files, and the classifier in a file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save
from torch import nn

from mtl.fewshot.exporting.plain import SEPARATELY, Plain, Written, some
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
NOTE = (
    "no class of transformers has this classifier, and a pipeline would draw a random one: the config counts no "
    "labels, so that it fails; predict with the lines that the folder comes with"
)


def write_transformers(plain: Plain, names: Sequence[str], draft: Path) -> Written:
    """Write the files into ``draft`` and load them again."""
    adapter, model = plain.backbone.adapter, plain.model
    assert isinstance(adapter, HFImages | HFText)
    assert isinstance(model, transformers.PreTrainedModel)
    model.config.id2label, model.config.label2id = {}, {}  # of the merged copy; two made-up labels by default
    model.save_pretrained(draft)
    head = {"weight": plain.weight.contiguous(), "bias": plain.bias.contiguous()}
    (draft / "head.safetensors").write_bytes(save(head))
    processor = _processor(adapter)
    if processor is not None:
        processor.save_pretrained(draft)
    again = _auto_model(draft)
    head = load_file(draft / "head.safetensors")
    facts = {
        "architecture": type(model).__name__,
        "model_args": {},
        "preprocessing": None if processor is None else type(processor).__name__,
        "features": adapter.formula(),
        "logits": "features @ weight.T + bias, both in head.safetensors",
    }
    return Written(
        LOAD,
        _lines(adapter, again),
        "mtl.json",
        {"num_classes": len(names)},
        facts,
        lambda inputs: plain.backbone.features(inputs, again).float() @ head["weight"].T + head["bias"],
        (NOTE,),
    )


def _lines(adapter: HFImages | HFText, model: Any) -> str:
    """Lines of Python from items to logits."""
    if isinstance(adapter, HFText):
        texts = "[text.lower() for text in texts]" if adapter.lower_case else "texts"
        return TEXTS.format(load=LOAD, texts=texts, pooled=POOLED[adapter.pooling])
    mode = "L" if adapter.shape[0] == 1 else "RGB"
    return IMAGES.format(load=LOAD, pooled=_pooled_images(adapter, model), mode=mode)


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


def _processor(adapter: HFImages | HFText) -> Any:
    """Image processor or tokenizer; None for a backbone that only takes tensors."""
    try:
        return adapter.processor if isinstance(adapter, HFImages) else adapter.tokenizer
    except ValueError:
        return None


def _auto_model(folder: Path) -> nn.Module:
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    # transformers silently fills missing weights with random ones. Poolers are not used here.
    lost = [k for k in info["missing_keys"] if "pooler" not in k.split(".")] + list(info["unexpected_keys"])
    if lost:
        raise ValueError(
            f"transformers.AutoModel builds a {type(model).__name__}, which does not take {some(lost)}, so this "
            f"network has no plain checkpoint; {SEPARATELY}"
        )
    return model.eval()
