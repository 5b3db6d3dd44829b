"""Scale and shift folded into the norm before them: one pass over the activation where there would be two.

A normalisation at fixed statistics is an affine map per channel, and so is a modulation: together they are one, with
coefficients per task. A layer normalisation takes the modulation of a single task as its own weight and bias.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AbstractFold(abc.ABC):
    """How the norms of one kind compute their output and its modulation at once."""

    @abc.abstractmethod
    def applies(self, module: Any, tasks: int) -> bool:
        """Whether a pass for so many tasks can be computed so.

        It depends on nothing that changes between the call of the module and the hooks on its output.
        """

    @abc.abstractmethod
    def __call__(self, module: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The modulated output of the module.

        Args:
            x: its input, ``(tasks * rows, ...)``, rows of one task together.
            scale: ``(tasks, C)``, any float dtype.
            shift: ``(tasks, C)``.
        """


class _FixedStatistics(AbstractFold):
    """Batch normalisation in evaluation mode: an affine map per task and channel.

    In less than float32 it would round the coefficients, which the layer itself does not; there it is left alone.
    """

    def applies(self, module: nn.BatchNorm2d, tasks: int) -> bool:
        del tasks
        variance = module.running_var
        if module.training or variance is None or variance.dtype not in (torch.float32, torch.float64):
            return False
        return not torch.is_autocast_enabled(variance.device.type)

    def __call__(self, module: nn.BatchNorm2d, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean, variance = module.running_mean, module.running_var
        assert mean is not None
        assert variance is not None
        slope = torch.rsqrt(variance + module.eps)
        if module.weight is not None:
            slope = slope * module.weight
        offset = -mean * slope if module.bias is None else module.bias - mean * slope
        return modulate(x, scale * slope, shift + scale * offset, 1)


class _FixedStatisticsAndActivation(_FixedStatistics):
    """The same with dropout and an activation behind, timm's ``BatchNormAct2d``."""

    def __call__(self, module: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return module.act(module.drop(super().__call__(module, x, scale, shift)))


class _LayerNorm(AbstractFold):
    """Layer normalisation with the weight and bias of a task."""

    def applies(self, module: nn.LayerNorm, tasks: int) -> bool:
        return tasks == 1 and not getattr(module, "_fast_norm", False)  # timm's switch to another kernel

    def __call__(self, module: nn.LayerNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        weight, bias = scale[0], shift[0]
        if module.bias is not None:
            bias = bias + weight * module.bias
        if module.weight is not None:
            weight = weight * module.weight
        like = x if module.weight is None else module.weight
        return F.layer_norm(x, module.normalized_shape, weight.to(like.dtype), bias.to(like.dtype), module.eps)


# By the very function that computes a module's output: a subclass that computes it otherwise is none of these.
_FOLDS: dict[str, AbstractFold] = {
    "torch.nn.modules.batchnorm._BatchNorm.forward": _FixedStatistics(),
    "timm.layers.norm_act.BatchNormAct2d.forward": _FixedStatisticsAndActivation(),
    "torch.nn.modules.normalization.LayerNorm.forward": _LayerNorm(),
    "timm.layers.norm.LayerNorm.forward": _LayerNorm(),
}


def fold_of(module: nn.Module) -> AbstractFold | None:
    """How to compute a module's modulated output at once; None where the module has to run as it is."""
    if "forward" in vars(module):  # somebody's patch, which may be what brings the weights in
        return None
    forward = type(module).forward
    return _FOLDS.get(f"{forward.__module__}.{forward.__qualname__}")


def modulate(x: Tensor, scale: Tensor, shift: Tensor, channel_dim: int) -> Tensor:
    """``scale * x + shift`` in the dtype of ``x``.

    Args:
        x: ``(tasks * rows, ...)``, rows of one task together.
        scale: ``(tasks, C)``, any float dtype; kept in float32 outside and cast here.
        shift: ``(tasks, C)``.
        channel_dim: the axis of ``x`` that has size ``C``: 1 or -1.
    """
    tasks, width = scale.shape
    rows = x.shape[0] // tasks  # len(x) would become a constant of an exported program
    shape = [x.shape[0]] + [1] * (x.dim() - 1)
    shape[channel_dim] = width
    # The vectors are repeated by row, rather than x grouped by task, so that the result is no view: where a network
    # works in place on a view, the hooks that gather sharded weights for the way back are lost.
    scale, shift = (v.to(x.dtype).unsqueeze(1).expand(tasks, rows, width).reshape(shape) for v in (scale, shift))
    return torch.addcmul(shift, x, scale)
