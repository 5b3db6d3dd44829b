"""LoRA and IA3 layers of peft with weights of their own for every task of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl.networks.modulation.watching import Hook, watching

_EXAMPLES = 7  # a number that no other axis is likely to be a multiple of


def adapt_per_task(model: nn.Module, run: Callable[[int], object]) -> bool:
    """Let the adapted layers of a network take weights with a leading task axis, in place.

    Rows of their inputs are grouped by task, as in a modulated network. What they compute is what peft's own layers do,
    without dropout.

    Args:
        model: with layers of peft; every one of its adapters' weights needs the axis from now on.
        run: passes so many examples through it.

    Returns:
        Whether several tasks may pass through it at once: some networks adapt what belongs to no example, such as
        relative positions.

    Raises:
        ValueError: for a layer of peft that is neither LoRA nor IA3 of a linear map.
    """
    from peft.tuners import ia3, lora  # pyright: ignore[reportMissingImports]
    from peft.tuners.tuners_utils import BaseTunerLayer  # pyright: ignore[reportMissingImports]

    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    together = all(rows % _EXAMPLES == 0 for rows in _rows(list(layers.values()), run))
    for name, layer in layers.items():
        if isinstance(layer, lora.Linear):
            layer.forward = partial(_lora, layer)
        elif isinstance(layer, ia3.Linear):
            layer.forward = partial(_ia3, layer)
        else:
            raise ValueError(f"{name} is a {type(layer).__name__} of peft: expected LoRA or IA3 of a linear layer")
    return together


@torch.no_grad()
def _rows(layers: Sequence[nn.Module], run: Callable[[int], object]) -> list[int]:
    """Lengths of the first axes of the layers' inputs."""
    found: list[int] = []
    hooks = [Hook(layer, lambda _, args: found.append(args[0].shape[0]), before=True) for layer in layers]
    with watching(hooks):
        run(_EXAMPLES)
    return found


def _lora(layer: Any, x: Tensor) -> Tensor:
    found = layer.base_layer(x)
    down, up = (maps["default"].weight for maps in (layer.lora_A, layer.lora_B))
    change = (_by_task(x, down).to(down.dtype) @ down.mT) @ up.mT
    return (found + change.view_as(found) * layer.scaling["default"]).to(found.dtype)


def _ia3(layer: Any, x: Tensor) -> Tensor:
    factors = layer.ia3_l["default"].flatten(1).unsqueeze(1)
    if layer.is_feedforward:
        return layer.base_layer(_scaled(x, factors))
    return _scaled(layer.base_layer(x), factors)


def _scaled(x: Tensor, factors: Tensor) -> Tensor:
    return (_by_task(x, factors) * factors).view_as(x).to(x.dtype)


def _by_task(x: Tensor, weights: Tensor) -> Tensor:
    """``(tasks, rows, width)``: the rows of each task together, whatever axes they had."""
    return x.reshape(len(weights), -1, x.shape[-1])
