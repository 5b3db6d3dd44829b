"""Feature maps of a network's stages, tapped by name while it runs; the network is not modified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtl.networks.modulation import Hook, watching

Out = TypeVar("Out")
MOST_PREFIX_TOKENS = 16  # class and register tokens; five are common


@dataclass(frozen=True)
class Tap:
    """A tapped module.

    Args:
        name: name of the module.
        channels: channels of its maps.
        size: height and width of its maps for the example.
        layout: shape of its output: ``"map"`` is ``(n, C, H, W)``, ``"last"`` is ``(n, H, W, C)``, ``"tokens"`` is
            ``(n, prefix + H * W, C)``.
        prefix: number of leading tokens without a place.
    """

    name: str
    channels: int
    size: tuple[int, int]
    layout: str = "map"
    prefix: int = 0

    def as_map(self, output: Any) -> Tensor:
        """Reshape the module's output to ``(n, C, H, W)``."""
        output = _tensor(output)
        if self.layout == "map":
            return output
        if self.layout == "last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.size)


class Taps:
    """Taps of a network's stages: found by one forward pass of an example, read by hooks during each call.

    By default, they are the stages that timm lists, or the blocks of a network from transformers; see
    :func:`stage_names`.

    Args:
        network: any module; it is not modified.
        forward: passes an example through the network.
        image_size: height and width of the example, from which the shape of a grid of tokens follows.
        names: modules to tap, in order, in place of the stages.
        most: maximum number of stages if ``names`` is None; at least 1.

    Attributes:
        taps: the taps in order.

    Raises:
        ValueError: no stages, an unknown module or one that is not called, or an output that is no feature map.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[], Any],
        image_size: tuple[int, int],
        names: Sequence[str] | None = None,
        most: int = 4,
    ) -> None:
        self.network = network
        names = stage_names(network, most) if names is None else list(names)
        modules = dict(network.named_modules())
        if unknown := [n for n in names if n not in modules]:
            raise ValueError(f"no module {unknown} in {type(network).__name__}; its children are {_children(network)}")
        self._modules = {n: modules[n] for n in names}
        with torch.no_grad():
            outputs = self._record(forward)[1]
        prefix = getattr(network, "num_prefix_tokens", None)  # timm's name
        self.taps = tuple(_tap(n, outputs[n], image_size, prefix) for n in names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.taps)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(t.channels for t in self.taps)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple(t.size for t in self.taps)

    def __call__(self, forward: Callable[[], Out]) -> tuple[Out, list[Tensor]]:
        """The result of ``forward``, and the maps ``(n, C, H, W)`` of every stage in its graph."""
        out, outputs = self._record(forward)
        return out, [tap.as_map(outputs[tap.name]) for tap in self.taps]

    def _record(self, forward: Callable[[], Out]) -> tuple[Out, dict[str, Any]]:
        outputs: dict[str, Any] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[name] = output

        with watching(Hook(module, partial(keep, name)) for name, module in self._modules.items()):
            out = forward()
        if unused := [n for n in self._modules if n not in outputs]:
            raise ValueError(f"{unused} of {type(self.network).__name__} are not called in a forward pass; name others")
        return out, outputs


def stage_names(network: nn.Module, most: int = 4) -> list[str]:
    """Names of at most ``most`` stages: the last of a convolutional network, evenly spaced blocks of a transformer.

    Raises:
        ValueError: the network has no stages, or ``most`` is less than one.
    """
    if most < 1:
        raise ValueError(f"most={most}: expected at least one stage")
    pyramid = _timm_stages(network)
    if len(set(pyramid.values())) > 1:  # every stage halves the map; the first is a stem
        return list(pyramid)[-most:]
    stages = list(pyramid) or _blocks(network)
    if not stages:
        raise ValueError(
            f"{type(network).__name__} has no stages: timm lists none, and it has no list of blocks; pass the names of "
            f"the modules to tap. Its children are {_children(network)}"
        )
    count = min(most, len(stages))
    return [stages[math.ceil(len(stages) * (i + 1) / count) - 1] for i in range(count)]


def _timm_stages(network: nn.Module) -> dict[str, int]:
    """The modules that timm lists, each with the ratio of image to map size."""
    modules = dict(network.named_modules())
    listed = list(getattr(network, "feature_info", None) or [])
    return {info["module"]: info["reduction"] for info in listed if info.get("module", "") in modules}


def _blocks(network: nn.Module) -> list[str]:
    """The members of the largest list of modules of one class, such as an encoder's layers."""
    lists = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    alike = [(n, m) for n, m in lists if len({type(block) for block in m}) == 1]
    if not alike:
        return []
    name, blocks = max(alike, key=lambda named: sum(p.numel() for p in named[1].parameters()))
    return [f"{name}.{i}" for i in range(len(blocks))]


def _children(network: nn.Module) -> list[str]:
    return [n for n, _ in network.named_children()]


def _tensor(output: Any) -> Tensor:
    """Some blocks of transformers return a tuple that begins with the hidden states."""
    return output[0] if isinstance(output, tuple | list) else output


def _tap(name: str, output: Any, image_size: tuple[int, int], prefix: int | None) -> Tap:
    output = _tensor(output)
    if isinstance(output, Tensor) and output.dim() == 4:
        # Channels come last (Swin) if only the other two have the image's proportions.
        _, a, b, c = output.shape
        if a * image_size[1] == b * image_size[0] and c != b:
            return Tap(name, c, (a, b), "last")
        return Tap(name, a, (b, c))
    if isinstance(output, Tensor) and output.dim() == 3:
        _, length, channels = output.shape
        candidates = range(MOST_PREFIX_TOKENS + 1) if prefix is None else [prefix]
        for p in candidates:
            if size := _grid(length - p, image_size):
                return Tap(name, channels, size, "tokens", p)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"the output {shape} of {name!r} is no feature map: expected (n, C, H, W), (n, H, W, C) or the tokens of a "
        f"grid shaped like the {image_size[0]} x {image_size[1]} image"
    )


def _grid(tokens: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of a grid of tokens with the image's proportions; None if there is none."""
    height = math.isqrt(max(tokens, 0) * image_size[0] // image_size[1])
    width = tokens // height if height else 0
    fits = tokens > 0 and height * width == tokens and height * image_size[1] == width * image_size[0]
    return (height, width) if fits else None
