"""A layer at a site: calling it as the network does, writing its parameters, scale and shift as an operation on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from mtl.networks.modulation import Site, hook_point


@dataclass(frozen=True)
class Layer:
    """The layer of a site.

    Args:
        model: the network that it is in.
        args: what the network calls it with.
    """

    model: nn.Module
    site: Site
    args: tuple

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.site.name)

    def __call__(self) -> Tensor:
        # Cloned inputs: a fused activation may work in place.
        return self.module(*(a.clone() if isinstance(a, Tensor) else a for a in self.args))


def value_of(tensor: Tensor | None) -> Tensor | None:
    """A copy to :func:`write` back later."""
    return None if tensor is None else tensor.detach().clone()


def write(module: nn.Module, values: dict[str, Tensor | None]) -> None:
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


def keep_operation(layer: Layer, scale: Tensor, shift: Tensor) -> Callable[[], None]:
    """Buffers and a module-level hook on the copy: it pickles, copies, moves between devices, and keeps its keys.

    Returns:
        A function that removes them.
    """
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
def operation(layer: Layer, scale: Tensor, shift: Tensor) -> Iterator[None]:
    """Scale and shift as an operation, inside this context."""
    undo = keep_operation(layer, scale, shift)
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
