"""Patching the forward of some modules for a while, without leaving a trace in the model; blocks that recompute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from mtl.networks.modulation import Modulator

Forward = Callable[..., Any]


@contextmanager
def patch_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Calls of these modules go to the given functions instead; hooks on the modules still run."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, original in before.items():
            if original is None:
                module.__dict__.pop("forward", None)
            else:  # somebody else's patch, such as an offloading hook's
                module.forward = original


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
    return {block: recompute(block.forward) for block in blocks}
