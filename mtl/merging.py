"""Folding a task's scale and shift into the weights: out comes a plain timm or transformers module."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from mtl.backbones import Backbone
from mtl.episode import Inputs
from mtl.modulation import Modulation, Modulator, Site, hook_point

# Of float32 sums in another order; a wrong fold is off by the size of the modulation itself.
_LAYER_TOLERANCE = 1e-4
_NETWORK_TOLERANCE = 1e-3

LinearMap = nn.Linear | Conv1D


@dataclass(frozen=True)
class Merged:
    """A network with one task's modulation inside.

    Args:
        model: a deep copy of the backbone's network on the CPU, without the backbone's hooks, frozen; float32 when
            that was stored lower.
        unmerged: ``"site: what and why"`` for all that a plain ``load_state_dict`` into the original class would lose:
            new keys, and operations that no weight can hold (they are buffers and a hook on the copy).
    """

    model: nn.Module
    unmerged: tuple[str, ...]


@torch.no_grad()
def merge(backbone: Backbone, modulation: Modulation, task: int = 0) -> Merged:
    """Fold the modulation of one task into a copy of the network.

    Linear and convolution: ``W' = diag(scale) W``, ``b' = scale * b + shift``. Norms at fixed statistics:
    ``w' = scale * w``, ``b' = scale * b + shift``. Every fold is tried on the layer's own input and kept only if it
    gives what scale and shift give, so unusual layers (``1 + w`` norms, standardised weights) are recognised by what
    they do. An RMSNorm has no bias; its shift moves into the biases of the linear layers that read it, if those are its
    only readers and all have one.

    Args:
        modulation: ``(tasks, P)``.
        task: the row to fold.

    Raises:
        ValueError: no such task, or another width than the backbone's.
        RuntimeError: the merged network does not reproduce the modulated one.
    """
    if not 0 <= task < modulation.tasks:
        raise ValueError(f"task={task}: the modulation holds tasks 0 to {modulation.tasks - 1}")
    model = _copy(backbone)
    row = Modulation(*(v[task : task + 1].detach().cpu() for v in (modulation.scale, modulation.shift)))
    inputs = backbone.example_inputs(2)

    def features() -> Tensor:
        return backbone.adapter.features(model, _like(inputs, model))

    reference = _modulated(model, backbone.sites, row, features)
    trace = _trace(model, backbone.sites, features)
    shared = _shared_weights(model)
    notes = [
        note
        for site, scale, shift in _rows(model, backbone.sites, row)
        for note in _fold(_Layer(model, site, trace.inputs[site.name]), scale, shift, trace, shared, features)
    ]
    error = _distance(features(), reference)
    if not error <= _NETWORK_TOLERANCE:
        raise RuntimeError(
            f"the merged {backbone.name} is off by {error:.1e} of its largest feature, expected "
            f"{_NETWORK_TOLERANCE:.0e}: a layer of it cannot be folded; keep the modulation and report the model"
        )
    return Merged(model, tuple(notes))


def _copy(backbone: Backbone) -> nn.Module:
    """Without hooks, in float32 on the CPU.

    Rounding folded weights to bfloat16 costs a fifth of a typical modulation, and a GPU's TF32 convolutions are too
    coarse to tell a right fold from a wrong one.
    """
    with backbone.modulator.removed() as model:
        copied = copy.deepcopy(model).cpu()
    low = any(p.dtype in (torch.bfloat16, torch.float16) for p in copied.parameters())
    return copied.float() if low else copied


def _like(inputs: Inputs, model: nn.Module) -> Inputs:
    like = next(model.parameters())
    return {k: v.to(like.device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(like)


def _modulated(model: nn.Module, sites: tuple[Site, ...], row: Modulation, features: Callable[[], Tensor]) -> Tensor:
    modulator = Modulator(model, sites)
    try:
        with modulator.modulating(row):
            return features()
    finally:
        modulator.remove()


def _rows(model: nn.Module, sites: tuple[Site, ...], row: Modulation) -> list[tuple[Site, Tensor, Tensor]]:
    widths = [s.width for s in sites]
    # float64: the product is then rounded once, when it is stored.
    rows = zip(sites, row.scale[0].double().split(widths), row.shift[0].double().split(widths), strict=True)
    # Layers with a bias first: a linear layer that gets one can then take the shift of the RMSNorm before it.
    return sorted(rows, key=lambda r: not _holds_shift(model.get_submodule(r[0].name)))


def _distance(x: Tensor, y: Tensor) -> float:
    """Largest difference, relative to the largest value of ``y``."""
    return float((x - y).abs().max() / y.abs().max().clamp_min(torch.finfo(y.dtype).tiny))


# --- what one forward tells ------------------------------------------------------------------------------------------


@dataclass
class _Trace:
    inputs: dict[str, tuple]  # of each site, its first call's arguments
    readers: dict[str, list[LinearMap]]  # of each site called once, the linear layers given its very output


def _trace(model: nn.Module, sites: tuple[Site, ...], features: Callable[[], Tensor]) -> _Trace:
    inputs: dict[str, tuple] = {}
    outputs: dict[str, list[Tensor]] = {s.name: [] for s in sites}
    reads: dict[LinearMap, list[Tensor]] = {m: [] for m in model.modules() if isinstance(m, LinearMap)}

    def at_site(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        inputs.setdefault(name, args)
        outputs[name].append(output)

    def at_reader(reader: LinearMap, module: nn.Module, args: tuple) -> None:
        reads[reader].extend(args[:1])

    handles = [m.register_forward_pre_hook(partial(at_reader, m)) for m in reads]
    handles += [model.get_submodule(s.name).register_forward_hook(partial(at_site, s.name)) for s in sites]
    try:
        features()
    finally:
        for handle in handles:
            handle.remove()
    once = {n: o[0] for n, o in outputs.items() if len(o) == 1}
    return _Trace(inputs, {n: [m for m, r in reads.items() if len(r) == 1 and r[0] is o] for n, o in once.items()})


def _shared_weights(model: nn.Module) -> set[int]:
    """Identities of the parameters that more than one module holds."""
    counts = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    return {i for i, n in counts.items() if n > 1}


# --- folding one layer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    model: nn.Module
    site: Site
    args: tuple

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.site.name)

    def __call__(self) -> Tensor:
        # Cloned inputs: a fused activation may work in place.
        return self.module(*(a.clone() if isinstance(a, Tensor) else a for a in self.args))


def _fold(
    layer: _Layer, scale: Tensor, shift: Tensor, trace: _Trace, shared: set[int], features: Callable[[], Tensor]
) -> list[str]:
    """Fold one site; what could not be folded, or changed the keys, in words."""
    module, name = layer.module, layer.site.name
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        _keep_operation(layer, scale, shift)
        return [f"{name}: scale and shift stay operations (another layer shares the weight)"]
    rest = torch.zeros_like(shift) if _holds_shift(module) else shift
    with _operation(layer, scale, shift - rest):
        expected = layer()
    added = _fold_weights(layer, scale, shift - rest, expected)
    if added is None:
        _keep_operation(layer, scale, shift)
        return [f"{name}: scale and shift stay operations (no weight of {type(module).__name__} reproduces them)"]
    notes = [f"{name}: new key {name}.{key}" for key in added]
    return notes + (_fold_rest(layer, rest, trace.readers.get(name, []), features) if rest.any() else [])


def _holds_shift(module: nn.Module) -> bool:
    maps = nn.Linear | nn.Conv2d | Conv1D | nn.LayerNorm | nn.GroupNorm | _BatchNorm
    return isinstance(module, maps) or isinstance(getattr(module, "bias", None), Tensor)


def _fold_weights(layer: _Layer, scale: Tensor, shift: Tensor, expected: Tensor) -> list[str] | None:
    """Try the ways a layer can use its weight, keep the best; names of new parameters, or None when no way is right."""
    module = layer.module
    weight, bias = (getattr(module, k, None) for k in ("weight", "bias"))
    before = {"weight": _value(weight), "bias": _value(bias)}
    folds = [
        {"weight": w, "bias": _new_bias(before["bias"], scale, shift)}
        for w in _new_weights(module, before["weight"], scale)
    ]
    errors = []
    for fold in folds:
        _set(module, fold)
        errors.append(_distance(layer(), expected))
        _set(module, before)
    if min(errors) > _LAYER_TOLERANCE:
        return None
    best = folds[errors.index(min(errors))]
    _set(module, best)
    return [k for k, v in best.items() if before[k] is None and v is not None]


def _value(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


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


def _set(module: nn.Module, values: dict[str, Tensor | None]) -> None:
    """Write in place where there is a tensor, so that ties survive; else add or take away the parameter."""
    for key, value in values.items():
        current = getattr(module, key, None)
        if isinstance(current, Tensor) and value is not None:
            current.data.copy_(value)
        elif current is not None or value is not None:
            module.register_parameter(key, None if value is None else _parameter_for(module, value))


def _parameter_for(module: nn.Module, value: Tensor) -> nn.Parameter:
    floats = [t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()]
    return nn.Parameter(value.to(floats[0]) if floats else value.float(), requires_grad=False)


# --- a shift that the layer cannot hold ------------------------------------------------------------------------------


def _fold_rest(layer: _Layer, shift: Tensor, readers: list[LinearMap], features: Callable[[], Tensor]) -> list[str]:
    if readers and all(isinstance(r.bias, Tensor) for r in readers) and _absorb(layer, readers, features):
        _add_to_biases(readers, shift)
        return []
    _keep_operation(layer, torch.ones_like(shift), shift)
    why = "and its readers are not all linear layers with a bias"
    return [f"{layer.site.name}: the shift stays an operation ({type(layer.module).__name__} has no bias, {why})"]


def _absorb(layer: _Layer, readers: list[LinearMap], features: Callable[[], Tensor]) -> bool:
    """Whether a large random shift acts on the network only through these linear layers."""
    probe = torch.randn(layer.site.width, generator=torch.Generator().manual_seed(0)).double()
    plain = features()
    with _operation(layer, torch.ones_like(probe), probe):
        expected = features()
    before = [_value(r.bias) for r in readers]
    _add_to_biases(readers, probe)
    found = features()
    for reader, old in zip(readers, before, strict=True):
        _set(reader, {"bias": old})
    return bool((found - expected).abs().max() <= _NETWORK_TOLERANCE * (expected - plain).abs().max())


def _add_to_biases(readers: list[LinearMap], shift: Tensor) -> None:
    for reader in readers:
        weight = reader.weight.double().T if isinstance(reader, Conv1D) else reader.weight.double()
        reader.bias.data.add_((weight @ shift).to(reader.bias))


def _keep_operation(layer: _Layer, scale: Tensor, shift: Tensor) -> Callable[[], None]:
    """Buffers and a module-level hook on the copy: it pickles, copies, moves between devices, and keeps its keys."""
    target, before = hook_point(layer.module)
    output = layer.args[0]
    shape = [-1] if layer.site.channel_dim == -1 else [-1] + [1] * (output.dim() - 2)
    target.register_buffer("merged_scale", scale.to(output).reshape(shape))
    target.register_buffer("merged_shift", shift.to(output).reshape(shape))
    if before:
        handle = target.register_forward_pre_hook(scale_and_shift_input)
    else:
        handle = target.register_forward_hook(scale_and_shift_output)

    def undo() -> None:
        handle.remove()
        del target.merged_scale, target.merged_shift

    return undo


@contextmanager
def _operation(layer: _Layer, scale: Tensor, shift: Tensor) -> Iterator[None]:
    undo = _keep_operation(layer, scale, shift)
    try:
        yield
    finally:
        undo()


def scale_and_shift_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Forward hook of a layer whose scale and shift could not be folded."""
    return _scale_and_shift(module, output)


def scale_and_shift_input(module: nn.Module, args: tuple[Tensor]) -> Tensor:
    """The same before the activation that is fused with a norm."""
    return _scale_and_shift(module, args[0])


def _scale_and_shift(module: nn.Module, x: Tensor) -> Tensor:
    scale, shift = module.get_buffer("merged_scale"), module.get_buffer("merged_shift")
    return x * scale.to(x.dtype) + shift.to(x.dtype)
