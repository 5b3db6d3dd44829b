"""How close exported tasks are to the learner: families of networks by what export writes, as a markdown table.

    python recipes/benchmarks/export_parity.py
    python recipes/benchmarks/export_parity.py --only bert vit

Networks are tiny and random, and away from their initial values, so that nothing exported wrongly hides behind a zero.
A cell is the largest difference of logits relative to their spread, after loading what was written with the library it
is for; a letter is the reason why there is none.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import tokenizers
import torch
import transformers
import tyro

import mtl

TARGETS = ("timm", "transformers", "peft", "sentence-transformers", "pt2", "onnx")
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 24,
}
_IMAGE = {**_SIZES, "image_size": 16, "patch_size": 8}
_DECODER = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DISTILBERT = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 50}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_VIT = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
_SMALL = {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}
_ALL = {"levels": "all", "grid": False}


@dataclass(frozen=True)
class Family:
    """One row.

    Args:
        title: in the table.
        name: a network of timm, or a ``model_type`` of transformers.
        config: its sizes.
        options: of :func:`mtl.load_backbone`.
        of_timm: whether it is one of timm.
        cosine: a head that normalises features, instead of a linear one.
    """

    title: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    of_timm: bool = False
    cosine: bool = False


FAMILIES = (
    Family("timm ResNet", "test_resnet", _SMALL, of_timm=True),
    Family("timm ConvNeXt", "test_convnext", _SMALL, of_timm=True),
    Family("timm EfficientNet", "test_efficientnet", _SMALL, of_timm=True),
    Family("timm ViT", "vit_tiny_patch16_224", _VIT, of_timm=True),
    Family("timm ViT, cosine head", "vit_tiny_patch16_224", _VIT, of_timm=True, cosine=True),
    Family("timm ResNet, linear layers too", "test_resnet", _SMALL, {"sites": "ssf"}, of_timm=True),
    Family("timm ResNet, all levels", "test_resnet", _SMALL, _ALL, of_timm=True),
    Family("timm ViT, all levels", "vit_tiny_patch16_224", _VIT, _ALL, of_timm=True),
    Family("BERT, mean", "bert", _SIZES),
    Family("BERT, cls", "bert", _SIZES, {"pooling": "cls"}),
    Family("BERT, mean, cosine head", "bert", _SIZES, cosine=True),
    Family("BERT, all levels", "bert", _SIZES, {"levels": "all"}),
    Family("RoBERTa, cls", "roberta", {**_SIZES, "pad_token_id": 0}, {"pooling": "cls"}),
    Family("DistilBERT, cls", "distilbert", _DISTILBERT, {"pooling": "cls"}),
    Family("DeBERTa v2, cls", "deberta-v2", {**_SIZES, "relative_attention": True}, {"pooling": "cls"}),
    Family("ELECTRA, cls", "electra", {**_SIZES, "embedding_size": 16}, {"pooling": "cls"}),
    Family("ModernBERT, mean", "modernbert", {**_DECODER, "cls_token_id": 1, "sep_token_id": 2}),
    Family("GPT-2, last", "gpt2", _GPT2),
    Family("Llama, last", "llama", _DECODER),
    Family("Qwen3, last", "qwen3", _DECODER),
    Family("T5 encoder, mean", "t5", _T5),
    Family("transformers ViT, mean", "vit", _IMAGE),
    Family("transformers ViT, cls", "vit", _IMAGE, {"pooling": "cls"}),
    Family("DINOv2, mean", "dinov2", _IMAGE),
    Family("Swin, mean", "swin", _SWIN),
    Family("transformers ResNet, mean", "resnet", _RESNET),
    Family(
        "transformers ConvNeXt, mean",
        "convnext",
        {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32},
    ),
)


@dataclass(frozen=True)
class Config:
    """What is compared.

    Args:
        only: rows whose title has one of these in it, upper or lower case.
        targets: columns.
    """

    only: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS


def main(settings: Config) -> None:
    """Print the table, row by row, and below it the reasons."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    reasons: dict[str, str] = {}
    print(f"| network | {' | '.join(settings.targets)} |\n|---|{'---|' * len(settings.targets)}")
    for family in FAMILIES:
        if settings.only and not any(word.lower() in family.title.lower() for word in settings.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {family.title} | {' | '.join(_row(family, settings, Path(folder), reasons))} |", flush=True)
    print()
    for why, letter in reasons.items():
        print(f"- {letter}: {why}")


def _row(family: Family, settings: Config, folder: Path, reasons: dict[str, str]) -> Iterator[str]:
    task = _task(family, folder)
    for i, target in enumerate(settings.targets):
        if target in ("timm", "transformers") and (target == "timm") != family.of_timm:
            yield "·"
            continue
        to: Any = target
        try:
            exported = mtl.export(task, folder / f"out-{i}", to=to)
        except (ValueError, RuntimeError, ImportError) as error:
            why = re.sub(r"\d+ levels", "several levels", str(error).replace(task.model.backbone.name, "it"))
            yield f"- {reasons.setdefault(why, ascii_lowercase[len(reasons)])}"
        else:
            beside = (
                " (head beside)" if (exported.folder / "head.safetensors").exists() and target in TARGETS[:3] else ""
            )
            yield f"{exported.parity.error:.0e}{beside}"


def _task(family: Family, folder: Path) -> mtl.Adapted:
    """A task far enough from the identity that leaving any part out shows."""
    backbone = _away_from_start(_backbone(family, folder))
    torch.manual_seed(0)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, hidden=16, gate=0.3)
    head = mtl.Cosine() if family.cosine else mtl.Linear()
    learner = mtl.MetaLearner(backbone, generator, head, inner_steps=2)
    inputs = backbone.example_inputs(9).with_task_axis().raw
    return learner.adapt(mtl.Examples(inputs, torch.arange(9)[None] % 3))


def _backbone(family: Family, folder: Path) -> mtl.Backbone:
    if family.of_timm:
        return mtl.load_backbone(family.name, pretrained=False, **family.config, **family.options)
    (folder / "config.json").write_text(json.dumps({"model_type": family.name, **family.config}))
    if "vocab_size" in family.config:
        _tokenizer().save_pretrained(folder)
    return mtl.load_backbone(folder, pretrained=False, **family.options)


def _tokenizer() -> Any:
    """Of letters."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(97, 123)), *map(str, range(20))])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **tokens)


def _away_from_start(backbone: mtl.Backbone) -> mtl.Backbone:
    generator = torch.Generator().manual_seed(4)
    for key, value in backbone.model.state_dict().items():
        if value.dim() == 1 and value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.mul_(0.5 + noise) if "var" in key else value.add_(noise - 0.3)
    return backbone


if __name__ == "__main__":
    main(tyro.cli(Config))
