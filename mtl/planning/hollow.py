"""Tensors that have shapes but no values, and behave like the CPU's: torch's fake tensors at a fifth of the cost.

An operation on them costs what PyTorch needs to tell the shape of its result: nothing is copied, planned for
compilation or checked for symbols. The result of an operation that was seen before comes from a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mtl.tools.memory import AbstractTellingMode

CPU, META = torch.device("cpu"), torch.device("meta")
_DEVICE_OF = torch.ops.prim.device.default
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)  # torch.tensor(1.0) arrives as these
_READ = torch.ops.aten._local_scalar_dense.default
_PECULIAR = (  # results that differ in more than shape, strides and type
    torch.ops.aten._new_zeros_with_same_feature_meta.default,
    torch.ops.aten._efficientzerotensor.default,
    torch.ops.aten._unsafe_view.default,  # a view all the same
)


class HollowTensor(FakeTensor):
    """A tensor without values: on the meta device to PyTorch's kernels, on the CPU to everybody else.

    A kind of fake tensor, because that is what libraries ask for before they read values. Operations need
    :class:`Hollow`.
    """

    @staticmethod
    def __new__(cls, meta: Tensor) -> HollowTensor:
        # The keys of the CPU choose its autocast and its autograd above the kernels.
        made = Tensor._make_subclass(cls, meta, dispatch_device=True, device_for_backend_keys=CPU)
        return cast(HollowTensor, made)

    def __init__(self, meta: Tensor) -> None:
        """Nothing is left to do."""

    constant: Tensor | None = None
    dispatch_keys = None

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The meta device for kernels, and the CPU otherwise."""
        return META if _running else CPU

    @property
    def fake_device(self) -> torch.device:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The same, under the name by which fake tensors are asked."""
        return self.device

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:
            return args[0].device
        raise RuntimeError(f"{func}: got a tensor that has no values; expected to run within its mode, Hollow()")


class Hollow(AbstractTellingMode):
    """Inside its context, operations give tensors without values."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], _Likes] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:  # two of three calls
            return META if _running else CPU
        result = self._run(func, args, kwargs := kwargs or {})
        self.tell(func, args, kwargs, result)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _LIFTS:
            return _constant(args[0])
        if func is _READ and args[0].constant is not None:
            return args[0].constant.item()
        if "device" in kwargs or _makes_tensors(func):
            kwargs = kwargs | {"device": META}
        if not _depends_on_shapes(func):
            return _hollow(_on_meta(func, args, kwargs))
        key = (func, *_described(args), *_described(kwargs.items()))
        if key not in self._seen:
            result = _LIKE_THE_CPU.get(func, _on_meta)(func, args, kwargs)
            self._seen[key] = _like(result)
            return _hollow(result)
        return _made(self._seen[key])


_running = False  # a kernel, which takes the tensors for those of the meta device


@dataclass(frozen=True)
class _Like:
    """What a new tensor is like."""

    size: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


_Likes: TypeAlias = "_Like | list[_Likes] | None"


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    global _running
    with torch._C._DisableTorchDispatch(), torch._C._PreserveDispatchKeyGuard():
        torch._C._set_meta_in_tls_dispatch_include(True)
        _running = True
        try:
            return func(*args, **kwargs)
        finally:
            _running = False


def _convolved(func: Any, args: Any, kwargs: Any) -> Any:
    """In the layout of the kernel that the CPU would choose: the meta device takes another."""
    backward = func is torch.ops.aten.convolution_backward.default
    images, weight, third, *rest = args[1:-1] if backward else args
    result = _on_meta(func, args, kwargs)
    if images.dim() not in (4, 5):
        return result
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    chosen = dict(zip(names, rest, strict=True), bias=None if backward else third)
    kernel = torch._C._select_conv_backend(images, weight, **chosen, bias_sizes=third if backward else None)
    layout = torch._C._conv_determine_backend_memory_format(images, weight, kernel)
    with torch._C._DisableTorchDispatch():
        if not backward:
            return result.to(memory_format=layout)
        gradients = [g if g is None else g.to(memory_format=layout) for g in result[:2]]
    return (*gradients, result[2])


def _normalised(func: Any, args: Any, kwargs: Any) -> Any:
    """Without the statistics of a batch where those of the layer are used."""
    result, *statistics = _on_meta(func, args, kwargs)
    if not args[5]:
        with torch._C._DisableTorchDispatch():
            statistics = [s.new_empty(0) for s in statistics]
    return (result, *statistics)


_LIKE_THE_CPU = {  # where kernels of the meta device give something else
    torch.ops.aten.convolution.default: _convolved,
    torch.ops.aten.convolution_backward.default: _convolved,
    torch.ops.aten.native_batch_norm.default: _normalised,
}


def _hollow(result: Any) -> Any:
    if type(result) is Tensor:
        return HollowTensor(result)
    return type(result)(map(_hollow, result)) if type(result) in (tuple, list) else result


def _constant(value: Tensor) -> Tensor:
    """A tensor that was written down in the code: a single number of these can be read."""
    if isinstance(value, HollowTensor):
        return value
    with torch._C._DisableTorchDispatch():
        made = HollowTensor(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META))
    made.constant = value if value.numel() == 1 else None
    return made


def _made(like: _Likes) -> Any:
    if isinstance(like, list):
        return tuple(map(_made, like))
    if like is None:
        return None
    with torch._C._DisableTorchDispatch():
        return HollowTensor(torch.empty_strided(like.size, like.strides, dtype=like.dtype, device=META))


def _like(result: Any) -> _Likes:
    if isinstance(result, Tensor):
        return _Like(result.shape, result.stride(), result.dtype)
    return None if result is None else list(map(_like, result))


def _described(args: Iterable[Any]) -> Iterable[Any]:
    """All that the shapes of a result depend on. With types: 1, 1.0 and True are equal."""
    for a in args:
        if isinstance(a, Tensor):
            yield a.shape, a.stride(), a.dtype
        else:
            yield tuple(_described(a)) if isinstance(a, list | tuple) else (type(a), a)


@cache
def _depends_on_shapes(func: Any) -> bool:
    """Whether results are new tensors that follow from shapes, not views of arguments, nor these themselves."""
    returns, own = func._schema.returns, (*func._schema.arguments, *func._schema.returns)
    new = all(a.alias_info is None for a in own) and all(_holds_tensors(r.type) for r in returns)
    return new and func not in _PECULIAR


@cache
def _makes_tensors(func: Any) -> bool:
    """Whether it has a choice of a device, and no argument to take it from."""
    arguments = func._schema.arguments
    return any(a.name == "device" for a in arguments) and not any(_holds_tensors(a.type) for a in arguments)


def _holds_tensors(kind: Any) -> bool:
    return kind.isSubtypeOf(torch._C.TensorType.get()) or any(map(_holds_tensors, kind.containedTypes()))
