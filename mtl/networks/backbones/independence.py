"""Whether features of an example depend on nothing but the example: not on chance, padding, or the others beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.metagrad.tensors import has_values
from mtl.networks.backbones.backbone import Backbone

_EXACT, _ROUNDED = 2e-4, 0.05  # relative difference that rounding explains, in float32 on processors and elsewhere
_MASK = "attention_mask"


@torch.no_grad()
def check_independence(backbone: Backbone) -> None:
    """Pass an example alone, and again beside others; a text beside a longer one.

    Raises:
        ValueError: its features differ, or are not finite.
    """
    together, alone, copies = _company(backbone)
    beside = backbone.features(together)
    if not has_values(beside):
        return
    single = backbone.features(alone)
    if not bool(beside.isfinite().all() and single.isfinite().all()):
        way_out = "load it with dtype='float32'" if backbone.low_precision else "are its weights damaged?"
        raise ValueError(f"{backbone.name} gives features that are not finite ({way_out})")
    tolerance = _ROUNDED if _rounds(backbone) else _EXACT
    found = max(_difference(row, single[0]) for row in beside[:copies])
    if found <= tolerance:
        return
    if _difference(backbone.features(alone)[0], single[0]) > tolerance:
        raise ValueError(
            f"{backbone.name} draws random numbers in eval mode: two calls give features {found:.0%} apart; switch "
            "that off by an argument of its config, or choose another network"
        )
    if copies > 1:
        raise ValueError(
            f"{backbone.name} reads padding: beside a longer text, features of a text are {found:.1%} off; choose a "
            "network that leaves padding out, such as BERT, RoBERTa or MPNet"
        )
    raise ValueError(
        f"{backbone.name} mixes the examples of a batch: beside others, features of an example are {found:.1%} off; "
        "replace what computes statistics of a batch, or choose another network"
    )


def _company(backbone: Backbone) -> tuple[Inputs, Inputs, int]:
    """Three examples, the first of them alone, and how many of the three are copies of it.

    Of texts the first two are the same one, padded with zeros and with the network's own token for it.
    """
    inputs = backbone.example_inputs(3)
    if _MASK not in inputs or len({t.shape for t in inputs}) > 1:
        return inputs, inputs.map(lambda t: t[:1]), 1
    length = (inputs.shape[1] + 1) // 2
    alone = inputs.map(lambda t: t[:1, :length])
    padding = getattr(getattr(backbone.model, "config", None), "pad_token_id", None) or 0

    def filled(tensor: Tensor, value: int) -> Tensor:
        return torch.cat([tensor[:1, :length], torch.full_like(tensor[:1, length:], value)], 1)

    rows = {k: [filled(t, 0), filled(t, padding if k == "input_ids" else 0), t[:1]] for k, t in inputs.tensors.items()}
    return Inputs({k: torch.cat(parts) for k, parts in rows.items()}), alone, 2


def _rounds(backbone: Backbone) -> bool:
    """Whether numbers depend on the size of a batch by more than the last digits of float32."""
    stored = {p.dtype for p in backbone.model.parameters()}
    return backbone.device.type != "cpu" or not stored <= {torch.float32, torch.float64}


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))
