"""Inputs are one tensor, or tensors by name; here they are treated alike."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mtl.episode import Inputs


def map_inputs(inputs: Inputs, f: Callable[[Tensor], Tensor]) -> Inputs:
    """``f`` of the tensor, or of each tensor."""
    return {k: f(v) for k, v in inputs.items()} if isinstance(inputs, dict) else f(inputs)


def pick(inputs: Inputs, task: int) -> Inputs:
    """The inputs of one task, without the task axis."""
    return map_inputs(inputs, lambda v: v[task])


def like(inputs: Inputs, model: nn.Module) -> Inputs:
    """To the network's device, and floats to its dtype."""
    first = next(model.parameters())
    return map_inputs(inputs, lambda v: v.to(first) if v.is_floating_point() else v.to(first.device))
