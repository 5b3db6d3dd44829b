"""Constraints the network puts on differentiation: low precision, missing second derivatives, several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """The frozen network in low precision; None runs it as it is stored.

    Without autocast's cache: frozen weights are not in it, and what is (a fast weight) would outlive its inner step.
    """
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def _as_it_is(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Execution:
    """Constraints of the network under the losses.

    Args:
        loss_scale: size at which cotangents travel through the network, forth and back; gradients are scaled back, so
            nothing changes but what a float16 network would lose to underflow. None leaves them as they are.
        no_double_backward_reason: why second derivatives of the network cannot be had (its weights are sharded, say);
            empty where they can.
        sync_max: turns a number on which control flow depends into the largest over all processes that have to walk in
            step, because each holds a part of the network.
    """

    loss_scale: float | None = None
    no_double_backward_reason: str = ""
    sync_max: Callable[[Tensor], Tensor] = _as_it_is

    @property
    def lockstep(self) -> bool:
        """Whether processes have to pass through the network together."""
        return self.sync_max is not _as_it_is

    def all_finite(self, values: Iterable[Tensor]) -> bool:
        """Whether no value holds a NaN or an infinity, in any of the processes that walk in step."""
        finite = torch.stack([torch.isfinite(v).all() for v in values]).all()
        return not bool(self.sync_max((~finite).float()))

    def at_lower_loss_scale(self) -> Execution | None:
        """The same at a sixteenth of the loss scale, after an overflow; None when that would be less than one."""
        if self.loss_scale is None or self.loss_scale < 16:
            return None
        return replace(self, loss_scale=self.loss_scale / 16)

    def require_second_order(self) -> None:
        """Refuse to differentiate a gradient of the network.

        Raises:
            RuntimeError: saying why, and what works.
        """
        if self.no_double_backward_reason:
            raise RuntimeError(
                f"no second derivatives of this network: {self.no_double_backward_reason}; "
                "use pull='finite-difference', as in Windowed(pull='finite-difference'), or FirstOrder"
            )
