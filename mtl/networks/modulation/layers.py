"""Kinds of layers: which of them normalise or map, which axis holds their channels, where to hook them."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

# Norms that subclass no torch norm: LlamaRMSNorm, T5LayerNorm, timm RmsNorm2d and SimpleNorm, frozen batch norms.
_NORM_NAME = re.compile(r"((RMS|Rms|Layer|Simple)Norm(2d)?(Fp32)?|FrozenBatchNorm(Act)?2d)$")


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside a compiled one: hooks added to the wrapper after its first call are ignored."""
    return getattr(model, "_orig_mod", model)


def restore_compiled_parts(model: nn.Module) -> nn.Module:
    """The module with all of its parts as they were before ``torch.compile``, in place: wrapped ones, those compiled by
    ``module.compile()``, and single methods. Compiled code may ignore the hooks that parts get later."""
    model = uncompiled(model)
    for part in list(model.modules()):
        vars(part).pop("_compiled_call_impl", None)
        for name, child in list(part._modules.items()):
            if child is not None and child is not uncompiled(child):
                part._modules[name] = uncompiled(child)
        methods = {k: v for k, v in vars(part).items() if "_torchdynamo_orig_callable" in getattr(v, "__dict__", ())}
        for name, method in methods.items():
            setattr(part, name, method._torchdynamo_orig_callable)
    return model


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises over one channel axis."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, _BatchNorm | nn.GroupNorm):
        return True
    weight = getattr(module, "weight", None)
    named = any(_NORM_NAME.search(c.__name__) for c in type(module).__mro__)
    return named and isinstance(weight, Tensor) and weight.dim() == 1


def is_linear_map(module: nn.Module) -> bool:
    """Whether the module is a linear layer, or a convolution that no norm is likely to follow (it has a bias)."""
    return isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.bias is not None)


def channel_dim(layer: nn.Module, output: Tensor) -> int:
    """The axis of a layer's output that holds its channels: 1 or -1."""
    if isinstance(layer, nn.Linear | Conv1D):
        return -1
    if isinstance(layer, nn.Conv2d | _BatchNorm | nn.GroupNorm) or "FrozenBatchNorm" in type(layer).__name__:
        return 1
    # The rest normalise the last axis unless they are made for NCHW; their weight tells, except on square cases.
    shape = getattr(layer, "normalized_shape", None)
    weight = getattr(layer, "weight", None)
    width = shape[0] if shape else len(weight) if isinstance(weight, Tensor) else output.shape[-1]
    if output.shape[-1] != width:
        return 1
    return 1 if output.dim() == 4 and output.shape[1] == width and _is_2d(layer) else -1


def _is_2d(layer: nn.Module) -> bool:
    channels_first = getattr(layer, "data_format", "") == "channels_first"  # transformers' ConvNeXt layer norm
    return channels_first or any("2d" in c.__name__ for c in type(layer).__mro__)


def hook_point(module: nn.Module) -> tuple[nn.Module, bool]:
    """The module to hook, and whether its input (True) or its output (False) is the site's activation.

    timm fuses norm, drop and activation (``BatchNormAct2d``): there the input of ``.act`` is what a norm would return.
    """
    act = dict(module.named_children()).get("act") if is_norm(module) else None
    return (module, False) if act is None else (act, True)


def without_nested_tensors(model: nn.Module) -> None:
    """Let torch's own encoders keep padded texts as they are: a hook cannot read a nested tensor."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
