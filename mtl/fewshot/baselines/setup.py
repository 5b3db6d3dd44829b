"""What all baselines of a table are made from, and a row of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Episode, Inputs
from mtl.fewshot.baselines.methods import Method
from mtl.fewshot.model import at_least_float32
from mtl.fewshot.statistics import FeatureStatistics, level_widths
from mtl.networks.backbones import Backbone
from mtl.tools.identity import digest

Value = float | tuple[Any, ...]
"""Of a setting: a number, or a tuple where two things are chosen together, such as ``(10.0, "standardised")``."""
STANDARDISED = "standardised"


class FeatureMemo:
    """The features of the last inputs asked for, so that the rows of a table share the passes over an episode.

    Inputs are the same when their tensors are the same objects; their values must not change in between.
    """

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self._entries: list[tuple[tuple[object, ...], Tensor, float]] = []
        self.saved_seconds = 0.0

    @torch.no_grad()
    def features(self, backbone: Backbone, inputs: Inputs) -> Tensor:
        """Features ``(tasks, n, D)`` of the plain network, in at least float32, on its device."""
        key = (backbone.options, backbone.dtype, backbone.device, *inputs)
        for known, features, seconds in self._entries:
            if len(known) == len(key) and known[:3] == key[:3] and all(map(_same, known[3:], key[3:])):
                self.saved_seconds += seconds
                return features
        start = time.perf_counter()
        features = at_least_float32(backbone(inputs))
        if features.device.type != "cpu":
            torch.accelerator.synchronize(features.device)
        self._entries = [*self._entries, (key, features, time.perf_counter() - start)][-self._keep :]
        return features


def _same(a: object, b: object) -> bool:
    return a is b


@dataclass(frozen=True)
class Setup:
    """What a row of the table is made from.

    Args:
        backbone: frozen.
        steps: gradient steps of the fine-tuned methods.
        statistics: of the features of training tasks. Without them, methods on all levels standardise each task by its
            own support set, which is rough at one shot.
        memo: features of the last episode; methods of one setup share it.
    """

    backbone: Backbone
    steps: int = 50
    statistics: FeatureStatistics | None = None
    memo: FeatureMemo = field(default_factory=FeatureMemo, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.statistics is not None and self.statistics.width != self.backbone.width:
            given = f"feature statistics of {self.statistics.width} features"
            raise ValueError(f"{given}, but {self.backbone.name} has {self.backbone.width}; make them from this one")

    @property
    def levels(self) -> tuple[int, ...]:
        """Widths of the levels; the last one is that of the network's own pooled features."""
        return level_widths(self.backbone)

    @property
    def last(self) -> slice:
        """The place of the network's own pooled features."""
        return self.backbone.last

    def features(self, inputs: Inputs) -> Tensor:
        """All features as the plain network gives them, ``(tasks, n, D)``; computed once per episode."""
        return self.memo.features(self.backbone, inputs)

    def plain(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The last level's features of support and query, as the network gives them."""
        seen, asked = self.features(episode.support.inputs), self.features(episode.query.inputs)
        return seen[..., self.last], asked[..., self.last]

    def standardised(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """All features of support and query, each with mean zero and standard deviation one over many examples."""
        seen, asked = self.features(episode.support.inputs), self.features(episode.query.inputs)
        standardise = self.standardiser(seen)
        return standardise(seen), standardise(asked)

    def last_standardised(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """The same of the last level alone."""
        seen, asked = self.standardised(episode)
        return seen[..., self.last], asked[..., self.last]

    def standardiser(self, support: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of features ``(tasks, n, D)``: by the statistics, or for lack of them by each task's support."""
        if self.statistics is not None:
            return self.statistics.standardise
        own = [FeatureStatistics.of_features(task, self.levels) for task in support]
        mean = torch.stack([s.mean for s in own]).unsqueeze(1).to(support)
        std = torch.stack([s.std for s in own]).unsqueeze(1).to(support)
        return lambda features: (features - mean) / std

    def method(
        self,
        name: str,
        logits: Callable[[Episode], Tensor],
        adapted_values: Callable[[int], int] = lambda ways: 0,
    ) -> Method:
        """A method whose seconds include the feature passes that it shares with others.

        Args:
            logits: of the queries, ``(tasks, n_query, ways)``.
        """
        saved = lambda: self.memo.saved_seconds  # noqa: E731
        return Method.of_logits(name, logits, adapted_values, shared_seconds=saved, identity=lambda: self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that its methods have in common."""
        s = self.statistics
        return {
            "backbone": self.backbone.identity(),
            "precision": str(self.backbone.options.precision),
            "steps": self.steps,
            "statistics": None if s is None else digest(s.mean, s.std),
        }


@dataclass(frozen=True)
class Baseline:
    """A row of a table of baselines.

    Args:
        make: from the setup and the value of the setting.
        setting: name of the one setting that is worth tuning; empty where there is none.
        default: its value when it is not tuned.
        grid: the values that :func:`mtl.fewshot.tune_baselines` tries.
        standardised_grid: more of them, tried when there are feature statistics.
        several_levels: whether it needs a backbone of several levels; it is left out on any other.
    """

    make: Callable[[Setup, Any], Method]
    setting: str = ""
    default: Value = 0.0
    grid: tuple[Value, ...] = ()
    standardised_grid: tuple[Value, ...] = ()
    several_levels: bool = False

    def method(self, setup: Setup, value: Value | None = None) -> Method:
        """The method at a value of the setting, by default the row's own."""
        value = self.default if value is None else value
        method = self.make(setup, value)
        if not self.setting:
            return method
        return replace(identified(method, value=value), tuned=show(self.setting, value))

    def candidates(self, setup: Setup) -> tuple[Value, ...]:
        """The values to tune over."""
        return self.grid + (self.standardised_grid if setup.statistics is not None else ())


def identified(method: Method, **more: Any) -> Method:
    """The method with more in its identity, if it has one."""
    known = method.identity
    return method if known is None else replace(method, identity=lambda: {**known(), **more})


def show(setting: str, value: Value) -> str:
    """A setting for tables: ``"c=10"``, ``"c=10 standardised"``.

    >>> show("c", (10.0, "standardised"))
    'c=10 standardised'
    >>> show("exponents", (0.5, 1.0))
    'exponents=0.5 1'
    """
    parts = value if isinstance(value, tuple) else (value,)
    return f"{setting}={' '.join(p if isinstance(p, str) else f'{p:g}' for p in parts)}"


def usable(table: Mapping[str, Baseline], setup: Setup) -> dict[str, Baseline]:
    """The rows that this backbone has enough levels for."""
    return {key: row for key, row in table.items() if len(setup.levels) > 1 or not row.several_levels}


def make_methods(table: Mapping[str, Baseline], setup: Setup, settings: Mapping[str, Value]) -> list[Method]:
    """One method per row that fits the backbone, at the given settings or the row's default.

    Raises:
        ValueError: for a setting that no baseline of the table has.
    """
    if unknown := settings.keys() - {row.setting for row in table.values()}:
        known = sorted(row.setting for row in table.values() if row.setting)
        raise ValueError(f"baselines: no setting {sorted(unknown)}; expected some of {known}")
    return [row.method(setup, settings.get(row.setting)) for row in usable(table, setup).values()]
