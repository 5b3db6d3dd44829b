"""The readout of a network: its stages are pooled as a forward pass reaches them, and nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.metagrad.tensors import has_values
from mtl.networks.modulation import CallLocal, Hook, LastingHook, changing, uncompiled, watching
from mtl.networks.readout import pooling
from mtl.networks.readout.levels import Choice, Kind, Level, chosen_stages
from mtl.networks.readout.pooling import Positions
from mtl.networks.readout.stages import Stage, find_stages, first_tensor
from mtl.networks.readout.statistics import AbstractStatistic, OfClassToken, OfMap, OfTokens

_INPUT = "input"
_MOST_CHANNELS_4X4, _LEAST_SIDE_4X4 = 64, 8


class _Reading(NamedTuple):
    """A forward pass in progress.

    Args:
        inputs: of the pass.
        wanted: stages that are pooled.
        parts: of every stage, what was pooled: ``(n, width)``.
    """

    inputs: Inputs
    wanted: Collection[int]
    parts: dict[int, Tensor]


class Readout:
    """Reads chosen stages of a network: means, deviations, grids and tokens, and last the network's own features.

    Threads may read at once: a pass in progress belongs to the thread that runs it.

    Args:
        model: with the hooks of its sites in place, if it has any; it gets a forward hook per stage that is read.
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
        self._recorded: CallLocal[list[Tensor] | None] = CallLocal(None)
        self._replayed: CallLocal[Tensor | None] = CallLocal(None)
        self._left_out = CallLocal(default=False)
        self._reading: CallLocal[_Reading | None] = CallLocal(None)
        self._hooked: nn.Module | None = None
        self._widths: dict[int, int] = {}
        with torch.no_grad():
            parts, features = self._run(model, example, own)
        self._drop_what_equals(features, parts)
        last = Level(f"{stages[-1].name} own", "own", len(stages) - 1, 1.0, features.shape[-1])
        self.levels = (*(s.level for of_stage in self._statistics.values() for s in of_stage), last)
        self._widths = {i: sum(s.level.width for s in of_stage) for i, of_stage in self._statistics.items()}
        self._hooked = uncompiled(model)
        with changing():
            for hook in self._hooks(self._hooked):
                hook.register()

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

    def recording(self, found: list[Tensor]) -> AbstractContextManager[None]:
        """Forwards inside, which may be stopped at the first site, append the levels below it: ``(n, width)``."""
        return self._recorded.set_to(found)

    def replaying(self, frozen: Tensor | None) -> AbstractContextManager[None]:
        """Forwards inside take those levels from here; None computes them."""
        return self._replayed.set_to(frozen)

    def without_frozen(self) -> AbstractContextManager[None]:
        """Forwards inside leave those levels out."""
        return self._left_out.set_to(True)

    @property
    def frozen(self) -> list[int]:
        """The read stages that end before the first site."""
        return [i for i, width in self._widths.items() if width and self.stages[i].frozen]

    def _run(
        self, model: nn.Module, inputs: Inputs, own: Callable[[Inputs], Tensor]
    ) -> tuple[dict[int, Tensor], Tensor]:
        model, frozen = uncompiled(model), self.frozen
        parts: dict[int, Tensor] = {}
        if (replayed := self._replayed.get()) is not None:
            parts.update(zip(frozen, replayed.split([self._widths[i] for i in frozen], 1), strict=True))
        skipped = {*parts, *(frozen if self._left_out.get() else [])}
        wanted = [i for i, statistics in self._statistics.items() if statistics and i not in skipped]
        reading = _Reading(inputs, wanted, parts)
        hooks = nullcontext() if model is self._hooked else watching(self._hooks(model))
        try:
            with self._reading.set_to(reading), hooks:
                if self.stages[0].name == _INPUT:
                    self.at_stage(0, inputs.tensor)
                return parts, own(inputs)  # a dict that is full once the features are there
        finally:
            if (recorded := self._recorded.get()) is not None and parts.keys() >= set(frozen):
                recorded.append(torch.cat([parts[i] for i in frozen], 1).detach())

    def at_stage(self, i: int, output: Any) -> None:
        """Pool the output of a stage for the pass that this thread is in, if it is in one."""
        if (reading := self._reading.get()) is None or i not in reading.wanted:
            return
        x = first_tensor(output)
        assert x is not None
        reading.parts[i] = torch.cat([s.pool(x, reading.inputs) for s in self._statistics[i]], 1)

    def _hooks(self, model: nn.Module) -> list[Hook]:
        read = [i for i, statistics in self._statistics.items() if statistics and self.stages[i].name != _INPUT]
        return [Hook(model.get_submodule(self.stages[i].name), _AtStage(self, i)) for i in read]

    def _of_stage(self, i: int, grid: bool) -> list[AbstractStatistic]:
        stage, depth = self.stages[i], i / max(1, len(self.stages) - 1)
        return self._of_text(i, stage, depth) if self._image is None else self._of_image(i, stage, depth, grid)

    def _of_text(self, i: int, stage: Stage, depth: float) -> list[AbstractStatistic]:
        causal = self.positions.causal
        kinds: list[Kind] = ["mean", "std"]
        if causal or self.positions.has_class_token:
            kinds.append("token")
        return [OfTokens(Level(f"{stage.name} {kind}", kind, i, depth, stage.width), causal) for kind in kinds]

    def _of_image(self, i: int, stage: Stage, depth: float, grid: bool) -> list[AbstractStatistic]:
        size, prefix = self._size(stage)

        def level(kind: Kind) -> Level:
            return Level(f"{stage.name} {kind}", kind, i, depth, stage.width)

        def of_map(level: Level) -> AbstractStatistic:
            return OfMap(level, stage.form, self.positions.prefix)

        statistics = [of_map(level("mean"))]
        if size[0] * size[1] > 1:
            statistics.append(of_map(level("std")))
        if stage.form == "tokens" and prefix and self.positions.has_class_token:
            statistics.append(OfClassToken(level("token")))
        for side in self._sides(i, stage, size) if grid else []:
            cells = side**2
            name = f"{stage.name} grid {side}x{side}"
            statistics.append(of_map(Level(name, "grid", i, depth, stage.width * cells, cells)))
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


class _AtStage(LastingHook):
    def __init__(self, readout: Readout, stage: int) -> None:
        self.readout, self.stage = readout, stage

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> None:
        self.readout.at_stage(self.stage, *output)
