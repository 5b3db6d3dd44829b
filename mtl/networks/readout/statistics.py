"""Statistics of one stage: which numbers of the features they give, and how they are pooled. They pickle."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from mtl.episode import Inputs
from mtl.networks.readout import pooling
from mtl.networks.readout.levels import Level

_MASK = "attention_mask"


@dataclass(frozen=True)
class AbstractStatistic(abc.ABC):
    """One level, and how it is pooled from the output of its stage."""

    level: Level

    @abc.abstractmethod
    def pool(self, x: Tensor, inputs: Inputs) -> Tensor:
        """``(n, ...)``, the output of the stage for these inputs, to ``(n, width)``."""


@dataclass(frozen=True)
class OfTokens(AbstractStatistic):
    """Of a text, by the kind of the level: mean or deviation over its tokens, or one token.

    Args:
        causal: see :class:`~mtl.networks.readout.pooling.Positions`.
    """

    causal: bool

    def pool(self, x: Tensor, inputs: Inputs) -> Tensor:
        mask = inputs.tensors.get(_MASK)
        if self.level.kind == "token":
            return pooling.one_token(x, mask, last=self.causal)
        weights = pooling.token_weights(x, mask, self.causal)
        return pooling.token_mean(x, weights) if self.level.kind == "mean" else pooling.token_std(x, weights)


@dataclass(frozen=True)
class OfMap(AbstractStatistic):
    """Of an image, by the kind of the level: mean or deviation over positions, or means over a grid.

    Args:
        form: how the output of the stage lies.
        prefix: tokens before those of the image.
    """

    form: pooling.Form
    prefix: int

    def pool(self, x: Tensor, inputs: Inputs) -> Tensor:
        height, width = inputs.tensor.shape[2:]
        x = pooling.as_map(x, self.form, height / width, self.prefix)
        if self.level.kind == "grid":
            return pooling.map_grid(x, round(self.level.cells**0.5))
        return pooling.map_mean(x) if self.level.kind == "mean" else pooling.map_std(x)


@dataclass(frozen=True)
class OfClassToken(AbstractStatistic):
    """Of an image, its class token."""

    def pool(self, x: Tensor, inputs: Inputs) -> Tensor:
        return pooling.one_token(x, None, last=False)
