"""A frozen network by its name, whichever library it is from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtl.backbones.adapter import AbstractAdapter
from mtl.backbones.backbone import Backbone
from mtl.backbones.timm_networks import EMBEDDED, load_embedded, load_timm
from mtl.backbones.transformers_networks import load_transformers
from mtl.modulation import SiteKind


def load_backbone(
    name: str | Path,
    *,
    sites: SiteKind = "norm",
    last_k: int | None = None,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    pooling: str | None = None,
    seed: int = 0,
    **model_args: Any,
) -> Backbone:
    """A frozen network by name.

    Args:
        name: ``"mtl/glyphs"`` for the small network that comes with the package (32 px, grey);
            ``"timm/<name>"`` or a timm name, with or without its tag (``"vit_small_patch16_224.dino"``);
            ``"hf/<id>"``, any other id with a slash, or a local folder with a ``config.json``.
        sites: ``"norm"`` or ``"ssf"``, see :func:`mtl.modulation.find_sites`.
        last_k: modulate the last ``k`` blocks only.
        pretrained: False gives random weights, the same ones for the same ``seed``.
        checkpoint: a local ``.safetensors`` or ``.pth`` file for a timm network.
        pooling: ``"mean"``, ``"cls"`` or ``"last"``. Default: timm's own; mean for encoders, the last token for causal
            models.
        model_args: passed on, such as ``in_chans``, ``img_size``, ``dtype="bfloat16"`` (or ``torch.bfloat16``).

    Raises:
        ValueError: a name, an argument or a checkpoint that does not fit.
        OSError: the weights are neither here nor reachable.
    """
    load = loader(name)
    if "dtype" in model_args:
        model_args["dtype"] = _dtype_name(model_args["dtype"], stored=pretrained and load is load_transformers)
    load_args: dict[str, Any] = {"name": str(name), "sites": sites, "last_k": last_k, "pretrained": pretrained}
    load_args |= {"checkpoint": checkpoint and str(checkpoint), "pooling": pooling, "seed": seed, **model_args}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, adapter = load(str(name), pretrained, checkpoint, pooling, model_args)
    return Backbone(model, adapter, name=str(name), sites=sites, last_k=last_k, load_args=load_args)


def loader(name: str | Path) -> Callable[..., tuple[nn.Module, AbstractAdapter]]:
    """What makes a network of this name, and its adapter; called with (name, pretrained, checkpoint, pooling, args)."""
    return load_embedded if str(name) == EMBEDDED else load_timm if _is_timm(name) else load_transformers


def _is_timm(name: str | Path) -> bool:
    config = Path(name) / "config.json"
    if config.is_file():
        return "architecture" in json.loads(config.read_text())  # what timm's save_for_hf writes
    return isinstance(name, str) and ("/" not in name or name.startswith("timm/"))


def _dtype_name(dtype: Any, stored: bool) -> Any:
    """``"bfloat16"`` for that and for ``torch.bfloat16``: a name fits into JSON.

    Args:
        stored: weights are read by transformers, which takes ``"auto"`` and a dtype per part of the network too.
    """
    if dtype is None or (stored and (dtype == "auto" or isinstance(dtype, dict))):
        return dtype
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r}: expected a floating-point torch.dtype or its name, such as 'float32' or 'bfloat16'"
        )
    return name
