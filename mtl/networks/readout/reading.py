"""The readout of a network: its stages are pooled as a forward pass reaches them, and nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.metagrad.tensors import has_values
from mtl.networks.modulation import uncompiled
from mtl.networks.readout import pooling
from mtl.networks.readout.levels import Choice, Level, chosen_stages
from mtl.networks.readout.pooling import Positions
from mtl.networks.readout.stages import Stage, find_stages, first_tensor

_INPUT = "input"
_MOST_CHANNELS_4X4, _LEAST_SIDE_4X4 = 64, 8
_MASK = "attention_mask"


@dataclass(frozen=True)
class _Statistic:
    """One level, and how it is pooled from the output of its stage."""

    level: Level
    pool: Callable[[Tensor, Inputs], Tensor]


class Readout:
    """Reads chosen stages of a network: means, deviations, grids and tokens, and last the network's own features.

    Args:
        model: with the hooks of its sites in place, if it has any; left as it was found.
        own: the network's own features ``(n, D)`` of inputs.
        example: three or more different examples.
        positions: what the token positions mean.
        levels: which stages, see :func:`~mtl.networks.readout.levels.chosen_stages`.
        grid: also means over grids, of images.
        sites: names of the modulated layers.

    Attributes:
        levels: in the order of the features, the network's own last.
        frozen: numbers that no modulation changes; they come first.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Callable[[Inputs], Tensor],
        example: Inputs,
        positions: Positions,
        *,
        levels: Choice,
        grid: bool,
        sites: Sequence[str],
    ) -> None:
        self.positions = positions
        self._image = None if example.named else example.tensor.shape
        stages = find_stages(uncompiled(model), lambda: own(example), example.count, self._image, set(sites))
        if self._image is not None:
            stages = [Stage(_INPUT, "map", self._image, True), *stages]
        if not stages:
            raise ValueError(
                f"levels={levels!r}: no stage of {type(model).__name__} returns maps or tokens with the examples along "
                "the first axis; use levels='last'"
            )
        self.stages = tuple(stages)
        self._statistics = {i: self._of_stage(i, grid) for i in chosen_stages(levels, [s.name for s in stages])}
        self._recorded: list[Tensor] | None = None
        self._replayed: Tensor | None = None
        self._left_out = False
        with torch.no_grad():
            parts, features = self._run(model, example, own)
        self._drop_what_equals(features, parts)
        last = Level(f"{stages[-1].name} own", "own", len(stages) - 1, 1.0, features.shape[-1])
        self.levels = (*(s.level for of_stage in self._statistics.values() for s in of_stage), last)
        self._widths = {i: sum(s.level.width for s in of_stage) for i, of_stage in self._statistics.items()}

    def read(self, model: nn.Module, inputs: Inputs, own: Callable[[Inputs], Tensor]) -> Tensor:
        """Features ``(n, D)`` of all levels, in at least float32.

        Args:
            model: the network, or a copy of it.
            inputs: ``(n, ...)``.
            own: passes the inputs through that model and returns its own features.
        """
        parts, features = self._run(model, inputs, own)
        return torch.cat([*(parts[i] for i in sorted(parts)), pooling.precise(features)], 1)

    @property
    def convolutional(self) -> bool:
        """Whether all stages are maps: convolutions are faster with channels last in memory."""
        return all(stage.form == "map" for stage in self.stages)

    @contextmanager
    def recording(self, found: list[Tensor]) -> Iterator[None]:
        """Forwards inside, which may be stopped at the first site, append the levels below it: ``(n, width)``."""
        previous, self._recorded = self._recorded, found
        try:
            yield
        finally:
            self._recorded = previous

    @contextmanager
    def replaying(self, frozen: Tensor | None) -> Iterator[None]:
        """Forwards inside take those levels from here; None computes them."""
        previous, self._replayed = self._replayed, frozen
        try:
            yield
        finally:
            self._replayed = previous

    @contextmanager
    def without_frozen(self) -> Iterator[None]:
        """Forwards inside leave those levels out."""
        previous, self._left_out = self._left_out, True
        try:
            yield
        finally:
            self._left_out = previous

    @property
    def frozen(self) -> list[int]:
        """The read stages that end before the first site."""
        return [i for i, width in self._widths.items() if width and self.stages[i].frozen]

    def _run(
        self, model: nn.Module, inputs: Inputs, own: Callable[[Inputs], Tensor]
    ) -> tuple[dict[int, Tensor], Tensor]:
        model, parts = uncompiled(model), dict[int, Tensor]()
        if self._replayed is not None:
            widths = [self._widths[i] for i in self.frozen]
            parts.update(zip(self.frozen, self._replayed.split(widths, 1), strict=True))

        def at_stage(i: int, module: nn.Module | None, args: Any, output: Any) -> None:
            x = first_tensor(output)
            assert x is not None
            parts[i] = torch.cat([s.pool(x, inputs) for s in self._statistics[i]], 1)

        handles = []
        skipped = {*parts, *(self.frozen if self._left_out else [])}
        wanted = [i for i, statistics in self._statistics.items() if statistics and i not in skipped]
        for i in wanted:
            if self.stages[i].name == _INPUT:
                at_stage(i, None, (), inputs.tensor)
            else:
                module = model.get_submodule(self.stages[i].name)
                handles.append(module.register_forward_hook(partial(at_stage, i)))
        try:
            return parts, own(inputs)  # a dict that is full once the features are there
        finally:
            for handle in handles:
                handle.remove()
            if self._recorded is not None and parts.keys() >= set(self.frozen):
                self._recorded.append(torch.cat([parts[i] for i in self.frozen], 1).detach())

    def _of_stage(self, i: int, grid: bool) -> list[_Statistic]:
        make = self._of_text if self._image is None else partial(self._of_image, grid=grid)
        return make(i, self.stages[i], i / max(1, len(self.stages) - 1))

    def _of_text(self, i: int, stage: Stage, depth: float) -> list[_Statistic]:
        causal, width = self.positions.causal, stage.width

        def level(kind: Literal["mean", "std", "token"]) -> Level:
            return Level(f"{stage.name} {kind}", kind, i, depth, width)

        def weights(x: Tensor, inputs: Inputs) -> Tensor:
            return pooling.token_weights(x, inputs.tensors.get(_MASK), causal)

        def token(x: Tensor, inputs: Inputs) -> Tensor:
            return pooling.one_token(x, inputs.tensors.get(_MASK), last=causal)

        statistics = [
            _Statistic(level("mean"), lambda x, inputs: pooling.token_mean(x, weights(x, inputs))),
            _Statistic(level("std"), lambda x, inputs: pooling.token_std(x, weights(x, inputs))),
        ]
        if causal or self.positions.has_class_token:
            statistics.append(_Statistic(level("token"), token))
        return statistics

    def _of_image(self, i: int, stage: Stage, depth: float, grid: bool) -> list[_Statistic]:
        def pooled(pool: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Inputs], Tensor]:
            def of(x: Tensor, inputs: Inputs) -> Tensor:
                height, width = inputs.tensor.shape[2:]
                return pool(pooling.as_map(x, stage.form, height / width, self.positions.prefix))

            return of

        size, prefix = self._size(stage)
        statistics = [_Statistic(Level(f"{stage.name} mean", "mean", i, depth, stage.width), pooled(pooling.map_mean))]
        if size[0] * size[1] > 1:
            level = Level(f"{stage.name} std", "std", i, depth, stage.width)
            statistics.append(_Statistic(level, pooled(pooling.map_std)))
        if stage.form == "tokens" and prefix and self.positions.has_class_token:
            level = Level(f"{stage.name} token", "token", i, depth, stage.width)
            statistics.append(_Statistic(level, lambda x, inputs: pooling.one_token(x, None, last=False)))
        sides = self._sides(i, stage, size) if grid else []
        for side in sides:
            level = Level(f"{stage.name} grid {side}x{side}", "grid", i, depth, stage.width * side**2, side**2)
            statistics.append(_Statistic(level, pooled(partial(pooling.map_grid, side=side))))
        return statistics

    def _size(self, stage: Stage) -> tuple[tuple[int, int], int]:
        """Rows and columns of a stage, and the tokens before them."""
        assert self._image is not None
        if stage.form != "tokens":
            at = 2 if stage.form == "map" else 1
            return (stage.shape[at], stage.shape[at + 1]), 0
        aspect = self._image[2] / self._image[3]
        height, width, prefix = pooling.patch_grid(stage.shape[1], aspect, self.positions.prefix)
        return (height, width), prefix

    def _sides(self, i: int, stage: Stage, size: tuple[int, int]) -> list[int]:
        """2x2 after the stem and before the last stage, 4x4 too where a map is large and thin."""
        if not 1 < i < len(self.stages) - 1 or min(size) < 2:
            return []
        fine = min(size) >= _LEAST_SIDE_4X4 and stage.width <= _MOST_CHANNELS_4X4
        return [2, 4] if fine else [2]

    def _drop_what_equals(self, own: Tensor, parts: dict[int, Tensor]) -> None:
        """The network's own features are often the mean of the last stage, or its class token: once is enough."""
        last = len(self.stages) - 1
        if last not in parts or not has_values(own):
            return
        pieces = parts[last].split([s.level.width for s in self._statistics[last]], 1)
        tolerance = (1e-4 if own.dtype in (torch.float32, torch.float64) else 1e-2) * float(own.abs().max())
        same = [p.shape == own.shape and bool((p - own).abs().max() <= tolerance) for p in pieces]
        self._statistics[last] = [s for s, drop in zip(self._statistics[last], same, strict=True) if not drop]
