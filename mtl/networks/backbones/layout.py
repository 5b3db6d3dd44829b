"""How images lie in memory: convolutions are faster with channels last, where the code of a network takes that."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.metagrad.tensors import has_values

_TOLERANCE = 1e-2  # of the largest feature: sums in another order differ by less, a wrong reading by far more


def with_channels_last(inputs: Inputs) -> Inputs:
    """The same images, ``(n, C, H, W)`` as before, stored pixel by pixel."""
    return inputs.map(_pixel_by_pixel)


def _pixel_by_pixel(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.shape[1] == 1:
        # Images of one channel are stored alike either way: what convolutions make of them goes by the strides.
        return x.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def takes_channels_last(features: Callable[[Inputs], Tensor], inputs: Inputs) -> bool:
    """Whether a network gives the same features of images that are stored so.

    One that reshapes its maps with ``view`` does not: torch raises an error there.

    Args:
        features: runs the network.
        inputs: examples to try it on.
    """
    if inputs.named or inputs.tensor.dim() != 4:
        return False
    expected = features(inputs)
    try:
        found = features(with_channels_last(inputs))
    except RuntimeError:
        return False
    if not has_values(expected):
        return True
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
