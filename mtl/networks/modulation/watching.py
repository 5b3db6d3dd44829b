"""Hooks on a network: the lasting ones of this package, which copy with it, and those of one call."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from mtl.networks.modulation.local import CallLocal, CopyableLock

_CHANGING = CopyableLock()


def changing() -> AbstractContextManager[None]:
    """To be held while the hooks or forwards of a network change: torch numbers hooks without a lock."""
    return nullcontext() if torch.compiler.is_compiling() else _CHANGING


class Hook(NamedTuple):
    """A hook of one module.

    Args:
        module: that is called.
        function: as torch calls it, ``(module, args)`` before and ``(module, args, output)`` after.
        before: before the module rather than after.
    """

    module: nn.Module
    function: Callable[..., Any]
    before: bool = False

    def register(self) -> Callable[[], None]:
        """Put it on its module; returns the function that takes it off. Hold :func:`changing`."""
        if self.before:
            return self.module.register_forward_pre_hook(self.function).remove
        return self.module.register_forward_hook(self.function).remove


class LastingHook(abc.ABC):
    """A hook that stays on a network. It is an object, so that a copy of the network gets a copy of it."""

    @abc.abstractmethod
    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        """As torch calls it: without the output before the module, with it after."""


class LastingForward(abc.ABC):
    """In place of a module's forward for as long as the network lives; copied with it like a :class:`LastingHook`."""

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As torch calls it."""


@contextmanager
def watching(hooks: Iterable[Hook]) -> Iterator[None]:
    """Hooks for the calls of this thread inside; other threads that call the network meanwhile do not run them."""
    here = CallLocal(default=False)

    def seen_here(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: function(*args) if here.get() else None

    with changing():
        removes = [hook._replace(function=seen_here(hook.function)).register() for hook in hooks]
    try:
        with here.set_to(True):
            yield
    finally:
        with changing():
            for remove in removes:
                remove()


def remove_hooks(
    model: nn.Module, wanted: Callable[[LastingHook | LastingForward], bool] = lambda lasting: True
) -> None:
    """Take the lasting hooks and forwards off a network, or some of them."""
    with changing():
        for module in model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [k for k, h in hooks.items() if isinstance(h, LastingHook) and wanted(h)]:
                    del hooks[key]
            forward = vars(module).get("forward")
            if isinstance(forward, LastingForward) and wanted(forward):
                del module.forward


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy without the lasting hooks."""
    copied = copy.deepcopy(model)
    remove_hooks(copied)
    return copied
