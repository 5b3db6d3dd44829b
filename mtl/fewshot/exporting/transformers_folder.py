"""A transformers checkpoint: its own files, and the classifier in a file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from mtl.fewshot.exporting.plain import SEPARATELY, Plain, Written, some
from mtl.networks.backbones import HFImages, HFText


def write_transformers(plain: Plain, names: Sequence[str], draft: Path) -> Written:
    """Write the files into ``draft`` and load them again."""
    adapter, model = plain.backbone.adapter, plain.model
    assert isinstance(adapter, HFImages | HFText)
    assert isinstance(model, transformers.PreTrainedModel)
    model.save_pretrained(draft)
    save_file({"weight": plain.weight.contiguous(), "bias": plain.bias.contiguous()}, draft / "head.safetensors")
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
        'transformers.AutoModel.from_pretrained(".")',
        "mtl.json",
        {"num_classes": len(names)},
        facts,
        lambda inputs: plain.backbone.features(inputs, again).float() @ head["weight"].T + head["bias"],
    )


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
