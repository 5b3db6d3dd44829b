"""Patching the forward of some modules for a while, without leaving a trace in the model; blocks that recompute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtl.networks.modulation import CallLocal, Modulator, changing

Forward = Callable[..., Any]
_PATCHES: CallLocal[Mapping[nn.Module, Forward]] = CallLocal({})


@contextmanager
def patch_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """This thread's calls of these modules go to the given functions instead; hooks on the modules still run."""
    if not forwards:
        yield
    elif torch.compiler.is_compiling():  # what is traced here is not seen elsewhere, and a lock cannot be traced
        with _replaced(forwards):
            yield
    else:
        with _switched(forwards), _PATCHES.set_to({**_PATCHES.get(), **forwards}):
            yield


def forward_of(module: nn.Module) -> Forward:
    """What a call of the module runs, in this thread."""
    if (patch := _PATCHES.get().get(module)) is not None:
        return patch
    forward = module.forward
    return forward.own if isinstance(forward, _Switch) else forward


class _Switch:
    """In place of a module's forward while some thread patches it: goes where the calling thread wants."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own = module, module.forward
        self.before = module.__dict__.get("forward")  # somebody else's patch, such as an offloading hook's
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _PATCHES.get().get(self.module, self.own)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return copy.deepcopy(self.own, memo)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (self.module, "forward")


@contextmanager
def _switched(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    switches = []
    with changing():
        for module in forwards:
            switch = module.__dict__.get("forward")
            if not isinstance(switch, _Switch):
                switch = module.forward = _Switch(module)
            switch.users += 1
            switches.append(switch)
    try:
        yield
    finally:
        with changing():
            for switch in switches:
                switch.users -= 1
                if not switch.users:
                    _put_back(switch.module, switch.before)


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, original in before.items():
            _put_back(module, original)


def _put_back(module: nn.Module, forward: Forward | None) -> None:
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = forward


def checkpointed_blocks(modulator: Modulator) -> dict[nn.Module, Forward]:
    """Forwards for the modulated blocks that keep only their inputs, and recompute the rest in the backward pass."""

    def recompute(forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            # The libraries' own switches would recompute without the modulation, which is gone by then.
            again = lambda: (nullcontext(), modulator.as_now())  # noqa: E731
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=again, **kwargs)

        return call

    names = {s.block for s in modulator.sites if s.block}
    inner = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
    blocks = [modulator.model.get_submodule(name) for name in inner]
    return {block: recompute(forward_of(block)) for block in blocks}
