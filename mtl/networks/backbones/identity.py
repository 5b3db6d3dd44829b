"""Which network and which weights these are: a short hash, and the arguments that load them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
import transformers
from accelerate.utils import align_module_device
from torch import Tensor, nn

_CACHE_FORMAT = 1  # one more when the same network makes other features of the same examples than before


def fingerprint(model: nn.Module) -> str:
    """A hash of parameter names, shapes and some values; the same on every device and in bfloat16."""
    digest = hashlib.sha256()
    named = sorted(model.named_parameters())
    for i, (name, value) in enumerate(named):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if i % max(1, len(named) // 8) == 0:
            part = _value(model, name).flatten()[:1024].to("cpu", torch.bfloat16)
            digest.update(part.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_key(spec: Mapping[str, Any], *details: Any) -> str:
    """A hash of a network and of how it is fed, which changes with the versions of timm and transformers.

    Args:
        spec: of the backbone.
        details: whatever else counts, with a stable ``str``.
    """
    parts = [_CACHE_FORMAT, timm.__version__, transformers.__version__, json.dumps(spec, sort_keys=True), *details]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def json_arguments(name: str, load_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of :func:`mtl.load_backbone` that made a network, as JSON holds them.

    Raises:
        ValueError: there are none, or JSON cannot hold one.
    """
    if load_args is None:
        raise ValueError(f"{name} was not made by load_backbone, so nothing says how to load it again")
    try:
        return json.loads(json.dumps(load_args))
    except TypeError as e:
        raise ValueError(f"the arguments of {name} do not fit into JSON ({e}); pass dtypes as strings") from e


def _value(model: nn.Module, name: str) -> Tensor:
    """The value of a parameter, brought in from the disk if it was put there."""
    value = model.get_parameter(name).detach()
    if not value.is_meta:
        return value
    with align_module_device(model.get_submodule(name.rpartition(".")[0]), torch.device("cpu")):
        return model.get_parameter(name).detach().clone()
