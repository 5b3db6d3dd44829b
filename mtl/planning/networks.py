"""Networks whose tensors have no values, so that no weights are downloaded or allocated."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtl.networks.backbones import AbstractAdapter, Backbone, TimmImages
from mtl.networks.backbones.families import AbstractFamily, family_of
from mtl.networks.backbones.transformers_networks import TransformersFamily
from mtl.networks.modulation import SiteKind
from mtl.planning.hollow import CPU, META, Hollow

Module = TypeVar("Module", bound=nn.Module)
Mode = Hollow | torch.device
"""Kind of tensors. Hollow ones have no values but behave like the CPU's, with its autograd and its autocast. Tensors on
the CPU are real, to measure."""

DECODER = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
KNOWN: dict[str, dict[str, Any]] = {
    "llama-1b": DECODER
    | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 8192, "head_dim": 64, "tie_word_embeddings": True},
    "llama-8b": DECODER
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 14336},
}
"""Built-in configurations of decoders, to plan without access to a hub."""


def backbone_in(
    name: str,
    mode: Mode,
    *,
    sites: SiteKind = "norm",
    last_k: int | None = None,
    image_size: int | None = None,
    **model_args: Any,
) -> Backbone:
    """A backbone with tensors of the given mode.

    Args:
        name: as in :func:`mtl.load_backbone`, or a key of :data:`KNOWN`; for a hub id only the configuration is read.
        mode: kind of its tensors, and of everything computed from them.
        image_size: pixels; None is the network's own size.

    Raises:
        ValueError: unknown name, or a size or number of blocks that the network does not support.
    """
    with mode if mode == CPU else META:
        model, adapter = _load(name, image_size, model_args)
    with mode:
        return Backbone(moved(model, mode), adapter, name=name, sites=sites, last_k=last_k)


def moved(module: Module, mode: Mode) -> Module:
    """The module with tensors of the mode in place of its own; shared tensors stay shared."""
    if not isinstance(mode, Hollow):
        return module
    made: dict[int, tuple[Tensor, Tensor]] = {}  # holds the originals too, or their ids could be reused

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                new = Parameter(new, tensor.requires_grad) if isinstance(tensor, Parameter) else new
            made[id(tensor)] = tensor, new
        return made[id(tensor)][1]

    for part in module.modules():
        # Plain attributes too: some networks store tables of angles outside their buffers.
        tables: tuple[Any, ...] = (part._parameters, part._buffers, vars(part))
        for held in tables:
            held.update({k: empty(v) for k, v in held.items() if isinstance(v, Tensor)})
    return module


def _load(name: str, image_size: int | None, args: dict[str, Any]) -> tuple[nn.Module, AbstractAdapter]:
    if name in KNOWN:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(KNOWN[name]))
            return _load(folder, image_size, args)
    family = family_of(name)
    try:
        if isinstance(family, TransformersFamily):
            return _load_configured(family, name, image_size, args)
        if image_size is None:
            return family.load(name, False, None, None, args)
        return _load_images(family, name, image_size, args)
    except OSError as e:
        raise ValueError(
            f"backbone={name!r}: found no configuration of that name; expected a timm model, a local folder with a "
            f"config.json, an id of a hub that can be reached, or one of {', '.join(KNOWN)}"
        ) from e


def _load_configured(
    family: AbstractFamily, name: str, size: int | None, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    sized = {} if size is None else {"image_size": size}
    try:
        # Pooling does not matter here, and choosing it automatically would need values.
        return family.load(name, False, None, "mean", args | sized)
    except ValueError as e:
        if "'image_size'" not in str(e):
            raise
        raise ValueError(f"image_size={size}: {name} has no such option; leave it out") from e


def _load_images(
    family: AbstractFamily, name: str, size: int, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    """A timm network for images of this size: transformers are built for one, convolutional networks take any."""
    try:
        return family.load(name, False, None, None, args | {"img_size": size})
    except ValueError as e:
        if "img_size" not in str(e):
            raise
    model, adapter = family.load(name, False, None, None, args)
    assert isinstance(adapter, TimmImages)
    channels = adapter.config["input_size"][0]
    return model, TimmImages({**adapter.config, "input_size": (channels, size, size)})
