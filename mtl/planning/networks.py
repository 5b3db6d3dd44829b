"""Networks without numbers: everything about them is known but the values, and nothing is downloaded or allocated."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from mtl.networks.backbones import AbstractAdapter, Backbone, TimmImages
from mtl.networks.backbones.loading import loader
from mtl.networks.backbones.transformers_networks import load_transformers
from mtl.networks.modulation import SiteKind

Module = TypeVar("Module", bound=nn.Module)
Mode = FakeTensorMode | torch.device
"""Where tensors live. Fake ones behave like the CPU's, with its kernels and its autocast, but have no values;
forward-mode differentiation does not know them, only those on the meta device. On the CPU are real ones, to measure."""
META, CPU = torch.device("meta"), torch.device("cpu")

DECODER = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
KNOWN: dict[str, dict[str, Any]] = {
    "llama-1b": DECODER
    | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 8192, "head_dim": 64, "tie_word_embeddings": True},
    "llama-8b": DECODER
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 14336},
}
"""Decoders by their size, to plan for one where no hub can be reached."""


def backbone_in(
    name: str,
    mode: Mode,
    *,
    sites: SiteKind = "norm",
    last_k: int | None = None,
    image_size: int | None = None,
    **model_args: Any,
) -> Backbone:
    """A backbone of the mode's tensors.

    Args:
        name: what :func:`mtl.load_backbone` takes, or a key of :data:`KNOWN`; of a hub id only the configuration is
            read.
        mode: what its tensors live in, and everything that is computed with them.
        image_size: pixels; None is the size that the network was made for.

    Raises:
        ValueError: a name, a size or a number of blocks that does not fit.
    """
    with mode if mode == CPU else META:
        model, adapter = _load(name, image_size, model_args)
    with mode:
        return Backbone(moved(model, mode), adapter, name=name, sites=sites, last_k=last_k)


def moved(module: Module, mode: Mode) -> Module:
    """The module with the mode's tensors in place of its own; a tensor that is used twice still is one."""
    if mode == CPU:
        return module
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the original as well, so that its id stays its own

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            device = "cpu" if isinstance(mode, FakeTensorMode) else "meta"
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            new = Parameter(new, tensor.requires_grad) if isinstance(tensor, Parameter) else new
            made[id(tensor)] = tensor, new
        return made[id(tensor)][1]

    for part in module.modules():
        # Plain attributes too: some networks keep tables of angles outside their buffers.
        tables: tuple[Any, ...] = (part._parameters, part._buffers, vars(part))
        for held in tables:
            held.update({k: empty(v) for k, v in held.items() if isinstance(v, Tensor)})
    return module


def _load(name: str, image_size: int | None, args: dict[str, Any]) -> tuple[nn.Module, AbstractAdapter]:
    if name in KNOWN:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(KNOWN[name]))
            return _load(folder, image_size, args)
    make = loader(name)
    try:
        if make is load_transformers:
            return _load_configured(make, name, image_size, args)
        if image_size is None:
            return make(name, False, None, None, args)
        return _load_images(make, name, image_size, args)
    except OSError as e:
        raise ValueError(
            f"backbone={name!r}: no configuration of that name is here or within reach; name a timm model, a local "
            f"folder with a config.json, or one of {', '.join(KNOWN)}"
        ) from e


def _load_configured(
    make: Callable[..., tuple[nn.Module, AbstractAdapter]], name: str, size: int | None, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    sized = {} if size is None else {"image_size": size}
    try:
        # How it pools makes no difference here, and to find out what suits the network would take its values.
        return make(name, False, None, "mean", args | sized)
    except ValueError as e:
        if "'image_size'" not in str(e):
            raise
        raise ValueError(f"image_size={size}: {name} has none to set; leave it out") from e


def _load_images(
    make: Callable[..., tuple[nn.Module, AbstractAdapter]], name: str, size: int, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    """A timm network for images of this size: a transformer is built for it, a convolutional network takes any."""
    try:
        return make(name, False, None, None, args | {"img_size": size})
    except ValueError as e:
        if "img_size" not in str(e):
            raise
    model, adapter = make(name, False, None, None, args)
    assert isinstance(adapter, TimmImages)
    channels = adapter.config["input_size"][0]
    return model, TimmImages({**adapter.config, "input_size": (channels, size, size)})
