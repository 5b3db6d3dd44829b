"""Folding scale and shift into one layer; a shift that it cannot hold moves into the linear layers that read it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from mtl.networks.merging.layer import Layer, keep_operation, operation, value_of, write
from mtl.networks.merging.tracing import LinearMap, Trace

# Of float32 sums in another order; a wrong fold is off by the size of the modulation itself.
_LAYER_TOLERANCE = 1e-4
NETWORK_TOLERANCE = 1e-3


def fold(
    layer: Layer, scale: Tensor, shift: Tensor, trace: Trace, shared: set[int], features: Callable[[], Tensor]
) -> list[str]:
    """Fold one site; returns notes on new keys and on what could not be folded."""
    module, name = layer.module, layer.site.name
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        keep_operation(layer, scale, shift)
        return [f"{name}: scale and shift stay operations (another layer shares the weight)"]
    rest = torch.zeros_like(shift) if holds_shift(module) else shift
    with operation(layer, scale, shift - rest):
        expected = layer()
    added = _fold_weights(layer, scale, shift - rest, expected)
    if added is None:
        keep_operation(layer, scale, shift)
        return [f"{name}: scale and shift stay operations (no weight of {type(module).__name__} reproduces them)"]
    notes = [f"{name}: new key {name}.{key}" for key in added]
    return notes + (_fold_rest(layer, rest, trace.readers.get(name, []), features) if rest.any() else [])


def holds_shift(module: nn.Module) -> bool:
    """Whether the layer has a bias, or is of a kind that takes one."""
    maps = nn.Linear | nn.Conv2d | Conv1D | nn.LayerNorm | nn.GroupNorm | _BatchNorm
    return isinstance(module, maps) or isinstance(getattr(module, "bias", None), Tensor)


def _fold_weights(layer: Layer, scale: Tensor, shift: Tensor, expected: Tensor) -> list[str] | None:
    """Try the ways a layer can use its weight, keep the best; names of new parameters, or None when no way is right."""
    module = layer.module
    weight, bias = (getattr(module, k, None) for k in ("weight", "bias"))
    before = {"weight": value_of(weight), "bias": value_of(bias)}
    folds = [
        {"weight": w, "bias": _new_bias(before["bias"], scale, shift)}
        for w in _new_weights(module, before["weight"], scale)
    ]
    errors = []
    for values in folds:
        write(module, values)
        errors.append(distance(layer(), expected))
        write(module, before)
    if min(errors) > _LAYER_TOLERANCE:
        return None
    best = folds[errors.index(min(errors))]
    write(module, best)
    return [k for k, v in best.items() if before[k] is None and v is not None]


def _new_weights(module: nn.Module, weight: Tensor | None, scale: Tensor) -> list[Tensor | None]:
    if weight is None:
        return [None if bool((scale == 1).all()) else scale]
    if weight.dim() > 1:
        columns = isinstance(module, Conv1D)  # stored (in, out)
        return [weight * (scale if columns else scale.reshape(-1, *[1] * (weight.dim() - 1)))]
    return [weight * scale, (1 + weight.double()) * scale - 1]


def _new_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor | None:
    if bias is None:
        return shift if shift.any() else None
    return bias * scale + shift


def distance(x: Tensor, y: Tensor) -> float:
    """Largest difference, relative to the largest value of ``y``."""
    return float((x - y).abs().max() / y.abs().max().clamp_min(torch.finfo(y.dtype).tiny))


# --- a shift that the layer cannot hold ------------------------------------------------------------------------------


def _fold_rest(layer: Layer, shift: Tensor, readers: list[LinearMap], features: Callable[[], Tensor]) -> list[str]:
    if readers and all(isinstance(r.bias, Tensor) for r in readers) and _absorb(layer, readers, features):
        _add_to_biases(readers, shift)
        return []
    keep_operation(layer, torch.ones_like(shift), shift)
    why = "and its readers are not all linear layers with a bias"
    return [f"{layer.site.name}: the shift stays an operation ({type(layer.module).__name__} has no bias, {why})"]


def _absorb(layer: Layer, readers: list[LinearMap], features: Callable[[], Tensor]) -> bool:
    """Whether a large random shift acts on the network only through these linear layers."""
    probe = torch.randn(layer.site.width, generator=torch.Generator().manual_seed(0)).double()
    plain = features()
    with operation(layer, torch.ones_like(probe), probe):
        expected = features()
    before = [value_of(r.bias) for r in readers]
    _add_to_biases(readers, probe)
    found = features()
    for reader, old in zip(readers, before, strict=True):
        write(reader, {"bias": old})
    return bool((found - expected).abs().max() <= NETWORK_TOLERANCE * (expected - plain).abs().max())


def _add_to_biases(readers: list[LinearMap], shift: Tensor) -> None:
    for reader in readers:
        weight = reader.weight.double().T if isinstance(reader, Conv1D) else reader.weight.double()
        reader.bias.data.add_((weight @ shift).to(reader.bias))
