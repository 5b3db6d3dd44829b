"""Small random networks of many kinds, timm and transformers; no hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mtl
from mtl.episode import Inputs
from mtl.fewshot.model import head_weights
from mtl.networks.backbones import Backbone, load_backbone
from mtl.networks.modulation import Modulation
from mtl.networks.modulation.watching import LastingForward

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}
_DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
TEXT = {
    "bert": SIZES,
    "roberta": {**SIZES, "max_position_embeddings": 18, "pad_token_id": 1},
    "distilbert": {
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 16,
    },
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": {
        **SIZES,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "bos_token_id": 1,
        "sep_token_id": 2,
        "eos_token_id": 2,
    },
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 50,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma": _DECODER,
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
}
HF_IMAGES = {"vit": {**SIZES, "image_size": 16, "patch_size": 8}}
VIT = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
SMALL = {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "test_resnet": SMALL,
    "resnet10t": SMALL,
    "test_convnext": SMALL,
    "test_efficientnet": SMALL,
    "test_efficientnet_ln": SMALL,
    "test_byobnet": SMALL,
    "test_vit4": {"img_size": 32},
}
NETWORKS = [*TIMM, *TEXT, *HF_IMAGES]


def load(name: str, folder: Path, **kwargs: Any) -> Backbone:
    """A small random backbone; ``folder`` takes the config of a transformers one."""
    if name in TIMM:
        return load_backbone(name, pretrained=False, **{**TIMM[name], **kwargs})
    config = {**TEXT, **HF_IMAGES}[name]
    (folder / "config.json").write_text(json.dumps({"model_type": name, **config}))
    return load_backbone(folder, pretrained=False, **kwargs)


def build(name: str, folder: Path, **kwargs: Any) -> Backbone:
    """The same away from its initial values: a zero at the end of a residual branch hides all that is wrong in it."""
    backbone = load(name, folder, **kwargs)
    generator = torch.Generator().manual_seed(4)
    for key, value in backbone.model.state_dict().items():
        if value.dim() == 1 and value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.mul_(0.5 + noise) if "var" in key else value.add_(noise - 0.3)
    return backbone


def batch(backbone: Backbone, tasks: int = 2, n: int = 2) -> Any:
    return backbone.example_inputs(tasks * n).unflatten(tasks).raw


def rows(inputs: Any, i: int) -> Any:
    return Inputs.of(inputs).map(lambda v: v[i : i + 1]).raw


def random_modulation(tasks: int, width: int, size: float = 0.2, dtype: torch.dtype = torch.float32) -> Modulation:
    noise = torch.randn(2, tasks, width, generator=torch.Generator().manual_seed(2), dtype=dtype) * size
    return Modulation(1 + noise[0], noise[1])


def modulation_of(backbone: Backbone, tasks: int = 2, size: float = 0.2) -> Modulation:
    return random_modulation(tasks, backbone.modulation_width, size)


def patched(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules whose forward somebody has replaced, beside the modulator itself."""
    replaced = [m for m in model.modules() if "forward" in vars(m)]
    return [m for m in replaced if not isinstance(vars(m)["forward"], LastingForward)]


def problem_of(network: mtl.Backbone, k: int = 4) -> tuple[mtl.InnerProblem, dict[str, torch.Tensor]]:
    """One task, whose inner loss also has a weight of its own per example: a meta-parameter that acts nowhere else."""
    labels = torch.tensor([[0, 1, 2, 0, 1, 2]], device=network.device)
    inputs: Any = batch(network, 1, 6)
    learner = mtl.MetaLearner(network, mtl.Static(network.sites, network.width, 0.02), inner_steps=k).to(network.device)
    support = mtl.Examples(inputs, labels)
    episode = mtl.Episode(support, support.map(lambda v: v.flip(1)), 3)
    problem = learner.problem(episode)
    meta = {n: v.detach() for n, v in learner.generator(learner.view(support)).items()} | {
        "example": torch.zeros_like(labels[0].float())
    }

    def inner_loss(weights, meta, step):
        features = learner.model.features(inputs, weights, meta)
        logits = learner.head.support_logits(head_weights(weights), (features, labels), 3)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * meta["example"].exp()).mean().unsqueeze(0)

    return replace(problem, inner_loss=inner_loss), meta
