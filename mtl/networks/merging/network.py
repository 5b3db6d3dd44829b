"""Merging a whole network: fold every site of a copy, and check the copy against the modulated network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtl.networks.backbones import Backbone
from mtl.networks.merging.folding import NETWORK_TOLERANCE, distance, fold, holds_shift
from mtl.networks.merging.layer import Layer
from mtl.networks.merging.tracing import shared_weights, trace_sites
from mtl.networks.modulation import Modulation, Modulator, Site, plain_copy


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
        return backbone.features(inputs, model)

    reference = _modulated(model, backbone.sites, row, features)
    trace = trace_sites(model, backbone.sites, features)
    shared = shared_weights(model)
    notes = [
        note
        for site, scale, shift in _rows(model, backbone.sites, row)
        for note in fold(Layer(model, site, trace.inputs[site.name]), scale, shift, trace, shared, features)
    ]
    error = distance(features(), reference)
    if not error <= NETWORK_TOLERANCE:
        raise RuntimeError(
            f"the merged {backbone.name} is off by {error:.1e} of its largest feature, expected "
            f"{NETWORK_TOLERANCE:.0e}: one of its layers does not fold; keep the modulation and report the model"
        )
    return Merged(model, tuple(notes))


def _copy(backbone: Backbone) -> nn.Module:
    """Without hooks, in float32 on the CPU.

    Rounding folded weights to bfloat16 costs a fifth of a typical modulation, and a GPU's TF32 convolutions are too
    coarse to tell a right fold from a wrong one.
    """
    copied = plain_copy(backbone.model).cpu()
    low = any(p.dtype in (torch.bfloat16, torch.float16) for p in copied.parameters())
    return copied.float() if low else copied


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
    return sorted(rows, key=lambda r: not holds_shift(model.get_submodule(r[0].name)))
