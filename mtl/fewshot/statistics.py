"""Mean and standard deviation of every feature over many examples, to put features of unlike scale on one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mtl.episode import Inputs, RawInputs, TaskSource
from mtl.networks.backbones import Backbone
from mtl.tools.files import write_whole
from mtl.tools.progress import ProgressBar

FLOOR = 0.05  # of the median standard deviation of a block: what hardly ever moves must not count for the most


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and standard deviation of every feature, of examples without labels.

    Args:
        mean: ``(D,)`` float32.
        std: ``(D,)`` float32, all positive. :meth:`of` and its siblings raise those of dead channels to a floor.

    Raises:
        ValueError: the shapes differ, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.mean.shape != self.std.shape:
            given = f"FeatureStatistics(mean {tuple(self.mean.shape)}, std {tuple(self.std.shape)})"
            raise ValueError(f"{given}: expected one number per feature in each, (D,) and (D,)")
        if wrong := int((~(self.std > 0)).sum()):
            raise ValueError(f"FeatureStatistics: {wrong} standard deviations are not positive; give them a floor")

    @property
    def width(self) -> int:
        """Number of features, ``D``."""
        return self.mean.shape[0]

    @staticmethod
    def of(backbone: Backbone, batches: Iterable[Inputs | RawInputs], total: int | None = None) -> FeatureStatistics:
        """Statistics of the plain network's features over batches of inputs, in one pass, summed in float64.

        Args:
            backbone: any; each of its levels gets its own floor.
            batches: ``(n, ...)`` or with a task axis ``(tasks, n, ...)``, tensors or tensors by name, on any device.
            total: number of batches, for the progress bar that appears after two seconds.

        Raises:
            ValueError: there is no example, or a feature is not finite.
        """
        shown = ProgressBar(batches, desc="feature statistics", unit="batch", total=total, delay=2)
        return _statistics((_features(backbone, Inputs.of(inputs)) for inputs in shown), level_widths(backbone))

    @staticmethod
    def of_tasks(backbone: Backbone, tasks: TaskSource, episodes: int) -> FeatureStatistics:
        """Statistics over support and query of episodes ``0 .. episodes - 1``; give it *training* tasks."""
        drawn = (tasks.sample(i) for i in range(episodes))
        batches = (part.inputs for episode in drawn for part in (episode.support, episode.query))
        return FeatureStatistics.of(backbone, batches, 2 * episodes)

    @staticmethod
    def of_features(features: Tensor, widths: Sequence[int] = ()) -> FeatureStatistics:
        """Statistics of features ``(..., D)``.

        Args:
            widths: of the blocks that get their own floor, such as the levels of a readout; all is one by default.
        """
        return _statistics([features.flatten(0, -2)], widths)

    def standardise(self, features: Tensor) -> Tensor:
        """``(features - mean) / std`` of ``(..., D)``, in at least float32, on the device of the features."""
        return (features - self.mean.to(features.device)) / self.std.to(features.device)

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """The same on a device."""
        return FeatureStatistics(self.mean.to(device), self.std.to(device))

    def save(self, path: str | Path) -> None:
        """Write the tensors ``mean`` and ``std`` to a safetensors file, as a whole or not at all.

        Raises:
            OSError: it could not be written; the message says why.
        """
        write_whole(path, save({"mean": self.mean.cpu().contiguous(), "std": self.std.cpu().contiguous()}))

    @staticmethod
    def load(path: str | Path) -> FeatureStatistics:
        """Read a file of :meth:`save`.

        Raises:
            ValueError: it is damaged, or holds other tensors.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); compute the statistics anew, and save them") from error
        if tensors.keys() != {"mean", "std"}:
            raise ValueError(f"{path} holds the tensors {sorted(tensors)}: expected 'mean' and 'std'")
        return FeatureStatistics(**tensors)


def level_widths(backbone: Backbone) -> tuple[int, ...]:
    """Widths of the levels of the features, in order; the last is the network's own pooled features."""
    return tuple(level.width for level in backbone.levels)


@torch.no_grad()
def _features(backbone: Backbone, inputs: Inputs) -> Tensor:
    """Features ``(n, D)`` of inputs with or without a task axis."""
    axes = 2 if inputs.named else len(backbone.example_inputs(1).shape)  # of one batch; tokens and readouts have two
    return backbone(inputs if len(inputs.shape) > axes else inputs.with_task_axis()).flatten(0, 1)


def _statistics(batches: Iterable[Tensor], widths: Sequence[int]) -> FeatureStatistics:
    count, mean, std = _moments(iter(batches))
    if not count:
        raise ValueError("feature statistics of no example at all: give at least one batch")
    if wrong := int((~torch.isfinite(mean + std)).sum()):
        raise ValueError(f"feature statistics: {wrong} of {len(mean)} features are not finite in some example")
    return FeatureStatistics(mean.float(), _floored(std, widths or (len(std),)).float())


def _moments(batches: Iterator[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Number of examples, mean and standard deviation (population) of ``(n, D)`` batches, in float64 on the CPU.

    Batch means are merged with what was seen before, so that a large common offset cancels (Chan et al., 1979).
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        x = batch.detach().cpu().double()
        if not len(x):
            continue
        total, own = count + len(x), x.mean(0)
        step = own - mean
        squares = squares + (x - own).square().sum(0) + step.square() * (count * len(x) / total)
        mean, count = mean + step * (len(x) / total), total
    return count, mean, (squares / max(count, 1)).sqrt()


def _floored(std: Tensor, widths: Sequence[int]) -> Tensor:
    """Standard deviations of at least a fraction of the median of their block; of one that is all dead, of 1."""

    def typical(block: Tensor) -> Tensor:
        alive = block[block > 0]
        return alive.median() if len(alive) else torch.ones_like(block[0])

    return torch.cat([block.clamp_min(float(FLOOR * typical(block))) for block in std.split(list(widths))])
