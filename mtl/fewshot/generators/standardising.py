"""Standardised features: every channel of a readout with mean 0 and standard deviation 1, whatever its level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtl.fewshot.moments import Moments
from mtl.fewshot.statistics import FeatureStatistics
from mtl.metagrad.tensors import Tensors
from mtl.networks.modulation import Modulation

Standard = Literal["fixed", "support"]
MEAN, INV_STD = "standard_mean", "standard_inv_std"
SMALL = 0.25  # of the mean square of a standardised level: one next to nothing is not blown up
PRIOR_EXAMPLES = 4.0  # that the typical variance of a level counts for, next to a handful of support examples


class Standardisation(nn.Module):
    """Mean and inverse standard deviation of every feature; the identity until :meth:`set` is called.

    They are folded into the scale and shift of the features, so that heads, export and merging see one affine map. Only
    ``even`` features are no affine map of raw ones.

    Args:
        widths: of the blocks of the features that share a typical variance, the levels.
        source: ``"fixed"``: statistics that were set, and are saved; ``"support"``: those of each task's own support
            set, where the variance of a channel is drawn towards that of its level.
        even: divide each level of each example by its root mean square (with a floor), so that an example of much
            contrast does not count more than a pale one.

    Raises:
        ValueError: for another source.
    """

    mean: Tensor
    inv_std: Tensor
    level: Tensor

    def __init__(self, widths: Sequence[int], source: Standard = "fixed", even: bool = False) -> None:
        super().__init__()
        if source not in get_args(Standard):
            raise ValueError(f"standard={source!r}: expected 'fixed' (statistics that are set) or 'support'")
        self.source, self.levels, self.even = source, len(widths), even
        self.widths = list(widths)
        self.changes = False  # whether the fixed statistics are set
        level = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
        self.register_buffer("level", level, persistent=False)
        self.register_buffer("mean", torch.zeros(len(level)))
        self.register_buffer("inv_std", torch.ones(len(level)))
        self.register_load_state_dict_pre_hook(_fill_in)
        self.register_load_state_dict_post_hook(_note_changes)

    def set(self, statistics: FeatureStatistics) -> None:
        """Take these statistics in place of what there was, or of those of the support set.

        Raises:
            ValueError: they are of other features.
        """
        if statistics.width != len(self.mean):
            raise ValueError(
                f"statistics of {statistics.width} features cannot standardise {len(self.mean)}; "
                "take FeatureStatistics.of the same backbone"
            )
        self.mean.copy_(statistics.mean)
        self.inv_std.copy_(1 / statistics.std)
        self.source, self.changes = "fixed", True

    def of_tasks(self, features: Tensor, given: Tensors | None = None) -> Tensors:
        """What ``meta`` has to carry, from raw support features ``(tasks, n, D)``: nothing for fixed statistics.

        Args:
            given: what it carries in any case, from :meth:`of_support`.
        """
        if given:
            return given
        return {} if self.source == "fixed" else self.of_support(features)

    def of_support(self, features: Tensor, background: Moments | None = None) -> Tensors:
        """Statistics of each task's support features ``(tasks, n, D)``, as ``meta`` carries them.

        Args:
            background: of unlabelled examples that count beside those of every task.
        """
        if background is None or not background.count:
            mean, inv_std = self._of_few(features)
        else:
            joined = Moments.of(features).joined(background)
            mean, inv_std = self._shrunk(joined.count, joined.mean.to(features), joined.var.to(features))
        return {MEAN: mean, INV_STD: inv_std}

    def _of_few(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of a handful of examples, ``(tasks, n, D)``."""
        return self._shrunk(features.shape[1], features.mean(1), features.var(1, unbiased=False))

    def _shrunk(self, n: int, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of n examples, from their mean and variance ``(tasks, D)``."""
        typical = level_means(var, self.level, self.levels)[:, self.level]
        var = (n * var + PRIOR_EXAMPLES * typical) / (n + PRIOR_EXAMPLES)
        return mean, torch.where(typical > 0, var, 1).rsqrt()

    def of_examples(self, features: Tensor) -> FeatureStatistics:
        """Statistics of few or many examples ``(n, D)``, with or without labels, for :meth:`set`."""
        mean, inv_std = self._of_few(features.unsqueeze(0))
        return FeatureStatistics(mean[0], 1 / inv_std[0])

    def moments(self, meta: Tensors) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation in force, ``(tasks, D)``, or ``(1, D)`` for all tasks."""
        return torch.atleast_2d(meta.get(MEAN, self.mean)), torch.atleast_2d(meta.get(INV_STD, self.inv_std))

    def apply_to(self, features: Tensor, meta: Tensors) -> Tensor:
        """Standardised features ``(tasks, n, D)``."""
        if self.changes or MEAN in meta:
            mean, inv_std = meta.get(MEAN, self.mean), meta.get(INV_STD, self.inv_std)
            features = _times(features - mean.unsqueeze(-2), inv_std.unsqueeze(-2))
        elif self.even:
            features = features.clone()
        return _even(features, self.widths) if self.even else features

    def before_scale(self, features: Tensor, meta: Tensors) -> Tensor:
        """Features ``(tasks, n, D)`` as scale and shift of :meth:`fold` expect them: raw, unless they are evened."""
        return self.apply_to(features, meta) if self.even else features

    def fold(self, modulation: Modulation, meta: Tensors) -> Modulation:
        """A modulation of standardised features as one of raw features; sites before them are left as they are."""
        if self.even or not (self.changes or MEAN in meta):
            return modulation
        sites = modulation.width - len(self.mean)
        mean, inv_std = meta.get(MEAN, self.mean), meta.get(INV_STD, self.inv_std)
        scale = modulation.scale[:, sites:] * inv_std
        shift = modulation.shift[:, sites:] - scale * mean
        return Modulation(
            torch.cat([modulation.scale[:, :sites], scale], 1), torch.cat([modulation.shift[:, :sites], shift], 1)
        )


def even(features: Tensor, widths: Sequence[int]) -> Tensor:
    """Features ``(..., D)`` with each level of each example divided by its root mean square, which has a floor."""
    return _even(features.clone(), widths)


def _even(features: Tensor, widths: Sequence[int]) -> Tensor:
    """The same, in place where no gradient goes through it."""
    parts = features.split(list(widths), -1)
    factors = (_mean_squares(parts) + SMALL).rsqrt()
    evened = [_times(x, f) for x, f in zip(parts, factors.split(1, -1), strict=True)]
    return torch.cat(evened, -1) if features.requires_grad else features


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """The product; in the memory of ``x`` where no gradient goes through it: readouts are large."""
    return x * factor if x.requires_grad or factor.requires_grad else x.mul_(factor)


def _mean_squares(parts: Sequence[Tensor]) -> Tensor:
    """Of each level over its last axis, ``(..., levels)``."""
    if any(x.requires_grad for x in parts):  # a norm has no second derivative at zero
        return torch.cat([x.square().mean(-1, keepdim=True) for x in parts], -1)
    # A norm reads a level once and writes nothing; squares take five times as long.
    sizes = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5 for x in parts]
    return torch.cat(sizes, -1).square()


def _fill_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Files from before there was standardisation hold none."""
    state.setdefault(f"{prefix}mean", torch.zeros_like(module.get_buffer("mean")))
    state.setdefault(f"{prefix}inv_std", torch.ones_like(module.get_buffer("inv_std")))


def _note_changes(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Standardisation)
    module.changes = bool(module.mean.any() or (module.inv_std != 1).any())


def level_means(values: Tensor, level: Tensor, levels: int) -> Tensor:
    """Mean over the channels of each level: ``(tasks, channels, ...) -> (tasks, levels, ...)``."""
    count = torch.zeros(levels, dtype=values.dtype, device=values.device).index_add(
        0, level, values.new_ones(len(level))
    )
    sums = values.new_zeros(values.shape[0], levels, *values.shape[2:]).index_add(1, level, values)
    return sums / count.view(-1, *[1] * (values.dim() - 2))
