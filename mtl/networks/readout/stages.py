"""Finding the stages of a network by watching one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl.networks.modulation import Hook, is_norm, watching
from mtl.networks.readout.pooling import Form

Containers = nn.Sequential | nn.ModuleList | nn.ModuleDict


@dataclass(frozen=True)
class Stage:
    """A module whose output is read.

    Args:
        name: dotted path; ``"input"`` for the image itself, which is no module.
        form: how its output lies.
        shape: of the output for a few examples.
        frozen: it ends before the first site begins.
    """

    name: str
    form: Form
    shape: torch.Size
    frozen: bool

    @property
    def width(self) -> int:
        """Channels."""
        return self.shape[1] if self.form == "map" else self.shape[-1]


@dataclass
class _Watched:
    calls: int = 0
    order: int = 0
    shape: torch.Size | None = None
    frozen: bool = False


def find_stages(
    model: nn.Module, run: Callable[[], Any], examples: int, image: torch.Size | None, sites: set[str]
) -> list[Stage]:
    """The stages, in the order in which they end.

    The search descends from the network into its only part that holds a list of blocks, until there are several such
    parts or none. What it meets on the way are the stages: stem, blocks or groups of blocks, last layers. A norm or an
    activation that follows a stage at the same size takes its place. What is not called exactly once, or does not
    return ``(n, C, h, w)``, ``(n, h, w, C)`` or ``(n, length, C)``, is no stage.

    Args:
        run: passes some examples through the model.
        examples: how many.
        image: shape ``(n, C, H, W)`` of these examples; None for texts.
        sites: names of the modulated layers.
    """
    watched = _watch(model, run, examples, sites)
    candidates = dict(_candidates(model, watched))
    usable = [n for n in candidates if watched[n].calls == 1 and watched[n].shape is not None]
    kept: list[str] = []
    for name in sorted(usable, key=lambda n: watched[n].order):
        shape = watched[name].shape
        if _finishes(candidates[name]):
            before = watched[kept[-1]].shape if kept else None
            if _same_size(before, shape):
                kept.pop()
            elif not any(True for _ in candidates[name].parameters()):
                continue  # a pooling layer, or dropout at the end
        kept.append(name)
    channels_last = getattr(model, "output_fmt", None)
    return [_stage(name, watched[name], image, str(channels_last)) for name in kept]


def _stage(name: str, seen: _Watched, image: torch.Size | None, output_format: str) -> Stage:
    assert seen.shape is not None
    form: Form = "tokens"
    if len(seen.shape) == 4:
        _, a, b, c = seen.shape
        aspect = 1.0 if image is None else image[2] / image[3]
        first, last = (abs(h / w - aspect) for h, w in ((b, c), (a, b)))
        form = "map" if first < last or (first == last and "NHWC" not in output_format) else "channels-last"
    return Stage(name, form, seen.shape, seen.frozen)


def first_tensor(output: Any) -> Tensor | None:
    """The tensor among a module's outputs that the next layer reads: blocks of transformers return tuples."""
    while isinstance(output, tuple | list | dict):
        values = list(output.values()) if isinstance(output, dict) else list(output)
        if not values:
            return None
        output = values[0]
    return output if isinstance(output, Tensor) else None


def _watch(model: nn.Module, run: Callable[[], Any], examples: int, sites: set[str]) -> dict[str, _Watched]:
    watched = {name: _Watched() for name, _ in model.named_modules()}
    ended, begun = 0, False

    def enter(name: str) -> None:
        nonlocal begun
        begun = begun or name in sites

    def leave(name: str, output: Any) -> None:
        nonlocal ended
        ended += 1
        seen, x = watched[name], first_tensor(output)
        seen.calls, seen.order, seen.frozen = seen.calls + 1, ended, not begun
        if x is not None and x.is_floating_point() and x.dim() in (3, 4) and len(x) == examples:
            seen.shape = x.shape

    hooks = []
    for name, module in model.named_modules():
        hooks.append(Hook(module, lambda _, args, name=name: enter(name), before=True))
        hooks.append(Hook(module, lambda _, args, output, name=name: leave(name, output)))
    with watching(hooks), torch.no_grad():
        run()
    return watched


def _candidates(model: nn.Module, watched: dict[str, _Watched]) -> Iterator[tuple[str, nn.Module]]:
    at, module = "", model
    while True:
        children = [(f"{at}.{name}".lstrip("."), child) for name, child in module.named_children()]
        deep = [(name, child) for name, child in children if _has_blocks(child)]
        if len(deep) != 1:
            break
        yield from ((name, child) for name, child in children if child is not deep[0][1])
        at, module = deep[0]
    for name, child in children:
        yield from _expanded(name, child, watched)


def _expanded(name: str, module: nn.Module, watched: dict[str, _Watched]) -> Iterator[tuple[str, nn.Module]]:
    """A list of blocks is one stage where all work at one resolution of a map, else each block is a stage."""
    parts = [(f"{name}.{key}", child) for key, child in module.named_children()]
    shapes = {watched[key].shape for key, child in parts if _is_block(child)} - {None}
    tokens = any(len(shape) == 3 for shape in shapes if shape is not None)
    uncalled = watched[name].calls == 0
    if isinstance(module, Containers) and (uncalled or len(shapes) > 1 or (tokens and _has_blocks(module))):
        for key, child in parts:
            yield from _expanded(key, child, watched)
    else:
        yield name, module


def _has_blocks(module: nn.Module) -> bool:
    return any(isinstance(m, Containers) and any(_is_block(c) for c in m.children()) for m in module.modules())


def _is_block(module: nn.Module) -> bool:
    inside = any(True for _ in module.children()) and not is_norm(module)
    return inside and any(True for _ in module.parameters())


def _finishes(module: nn.Module) -> bool:
    """A norm, an activation or dropout: what may follow a stage and belong to it."""
    if is_norm(module):
        return True
    leaf = not any(True for _ in module.children())
    return leaf and not any(True for _ in module.parameters())


def _same_size(before: torch.Size | None, after: torch.Size | None) -> bool:
    if before is None or after is None or len(before) != len(after):
        return False
    return before == after or (len(after) == 3 and before[-1] == after[-1])  # a class token may join the patches
