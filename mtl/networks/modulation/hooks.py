"""Applying a modulation through hooks on the sites of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtl.networks.modulation.layers import hook_point, uncompiled
from mtl.networks.modulation.local import CallLocal
from mtl.networks.modulation.sites import Modulation, Site
from mtl.networks.modulation.watching import Hook, LastingHook, changing, remove_hooks

PerSite = list[tuple[Tensor, Tensor]]
"""Scale and shift of every site, each ``(tasks, C)``."""


@dataclass
class _Recording:
    examples: int
    mask: Tensor | None
    means: dict[int, list[Tensor]] = field(default_factory=dict)


class Modulator:
    """Owns the hooks on a model's sites, and the modulation of the calls in progress, thread by thread.

    A modulation is here only while its call runs. A backward pass that recomputes activations later, maybe in another
    thread, has to restore it, see :meth:`as_now`; otherwise the recomputation runs unmodulated, and torch raises an
    error because it saves another number of tensors.

    A deep copy or a pickle of the model takes the hooks along, which belong to a copy of the modulator.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = uncompiled(model)
        self.sites = tuple(sites)
        self.width = sum(s.width for s in self.sites)
        self._active: CallLocal[PerSite | None] = CallLocal(None)
        self._recording: CallLocal[_Recording | None] = CallLocal(None)
        self._stopping = CallLocal(default=False)
        self._installed = False
        self.install()

    def install(self) -> None:
        """Put the hooks on the model; no effect if they are there."""
        with changing():
            if not self._installed:
                for i, site in enumerate(self.sites):
                    target, before = hook_point(self.model.get_submodule(site.name))
                    Hook(target, _SiteHook(self, i), before).register()
            self._installed = True

    def remove(self) -> None:
        """Take the hooks off the model, for all threads; :meth:`install` puts them back."""
        remove_hooks(self.model, lambda hook: isinstance(hook, _SiteHook) and hook.modulator is self)
        self._installed = False

    def modulating(self, modulation: Modulation | None) -> AbstractContextManager[None]:
        """Forwards of this thread inside see this modulation, with rows grouped by task along their first axis.

        Raises:
            ValueError: the modulation is not as wide as the sites together.
        """
        return self._active.set_to(None if modulation is None else self._per_site(modulation))

    def as_now(self) -> AbstractContextManager[None]:
        """A context in which forwards see the modulation of this moment; it may be entered often, and in any thread."""
        return self._active.set_to(self._active.get())

    def stopping(self) -> AbstractContextManager[None]:
        """Forwards of this thread inside end with :class:`FirstSite` where the first site is reached."""
        return self._stopping.set_to(True)

    @contextmanager
    def recording(self, examples: int, mask: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Fills the list, on leaving, with each site's mean over positions: ``(examples, width)`` in float32.

        Args:
            mask: ``(examples, length)``, 0 at padding tokens, which are left out of the mean.
        """
        found: list[Tensor] = []
        recording = _Recording(examples, mask)
        with self._recording.set_to(recording):
            yield found
        calls = [recording.means[i] for i in range(len(self.sites))]
        found.extend(torch.stack(means).mean(0) for means in calls)

    def _per_site(self, modulation: Modulation) -> PerSite:
        if modulation.width != self.width:
            raise ValueError(
                f"the modulation is {modulation.width} wide but the {len(self.sites)} sites take {self.width} channels "
                "together; build it with Modulation.identity(tasks, backbone.modulation_width)"
            )
        widths = [s.width for s in self.sites]
        return list(zip(modulation.scale.split(widths, 1), modulation.shift.split(widths, 1), strict=True))

    def at_site(self, i: int, x: Tensor) -> Tensor | None:
        """What becomes of the activation of a site; None leaves it as it is."""
        if self._stopping.get():
            raise FirstSite
        if (recording := self._recording.get()) is not None:
            means = recording.means.setdefault(i, [])
            means.append(_position_mean(x, self.sites[i].channel_dim, recording))
        if (active := self._active.get()) is None:
            return None
        return modulate(x, *active[i], self.sites[i].channel_dim)


class FirstSite(Exception):
    """The forward pass has come to the first site, and what follows is not wanted."""


class _SiteHook(LastingHook):
    def __init__(self, modulator: Modulator, site: int) -> None:
        self.modulator, self.site = modulator, site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Tensor | None:
        return self.modulator.at_site(self.site, (output or args)[0])


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


def _position_mean(x: Tensor, channel_dim: int, recording: _Recording) -> Tensor:
    """Mean over everything but example and channel: ``(examples, C)``."""
    # Rows that are parts of an example (windows, flattened tokens) become one more position axis.
    grouped = x.detach().float().movedim(channel_dim, -1).unflatten(0, (recording.examples, -1))
    weights = _position_weights(grouped, recording.mask)
    if weights is None:
        return grouped.flatten(1, -2).mean(1)
    weights = weights.expand(*grouped.shape[:-1], 1)
    return (grouped * weights).flatten(1, -2).sum(1) / weights.flatten(1, -2).sum(1).clamp_min(1)


def _position_weights(grouped: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask, shaped to broadcast against ``(examples, positions..., C)``; None when no axis is the token axis."""
    if mask is None:
        return None
    axis = next((d for d in range(1, grouped.dim() - 1) if grouped.shape[d] == mask.shape[1]), None)
    if axis is None:
        return None
    return mask.to(grouped).reshape([-1 if d == 0 else mask.shape[1] if d == axis else 1 for d in range(grouped.dim())])
