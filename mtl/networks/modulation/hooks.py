"""Applying a modulation through hooks on the sites of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl.networks.modulation.folding import AbstractFold, fold_of, modulate
from mtl.networks.modulation.layers import hook_point, uncompiled
from mtl.networks.modulation.local import CallLocal
from mtl.networks.modulation.sites import Modulation, Site
from mtl.networks.modulation.watching import Hook, LastingForward, LastingHook, changing, remove_hooks

PerSite = list[tuple[Tensor, Tensor]]
"""Scale and shift of every site, each ``(tasks, C)``."""


@dataclass
class _Recording:
    examples: int
    mask: Tensor | None
    means: dict[int, list[Tensor]] = field(default_factory=dict)


class _Call(NamedTuple):
    """What a call in progress wants of the sites."""

    modulation: PerSite | None = None
    recording: _Recording | None = None
    stopping: bool = False

    @property
    def tasks(self) -> int:
        """How many there are, where modulating is all that is wanted; else none."""
        if self.modulation is None or self.stopping or self.recording is not None:
            return 0
        return len(self.modulation[0][0])


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
        self._call = CallLocal(_Call())
        self._folds: dict[int, AbstractFold] = {}
        self._installed = False
        self.install()

    def install(self) -> None:
        """Put the hooks on the model; no effect if they are there."""
        with changing():
            if not self._installed:
                for i, site in enumerate(self.sites):
                    self._install_at(i, self.model.get_submodule(site.name))
            self._installed = True

    def _install_at(self, i: int, layer: nn.Module) -> None:
        target, before = hook_point(layer)
        Hook(target, _SiteHook(self, i, layer), before).register()
        if (fold := fold_of(layer)) is not None:
            self._folds[i] = fold
            layer.forward = _SiteForward(self, i, layer)

    def remove(self) -> None:
        """Take the hooks off the model, for all threads; :meth:`install` puts them back."""
        remove_hooks(self.model, lambda it: isinstance(it, _SiteHook | _SiteForward) and it.modulator is self)
        self._folds.clear()
        self._installed = False

    def modulating(self, modulation: Modulation | None) -> AbstractContextManager[None]:
        """Forwards of this thread inside see this modulation, with rows grouped by task along their first axis.

        Raises:
            ValueError: the modulation is not as wide as the sites together.
        """
        per_site = None if modulation is None else self._per_site(modulation)
        return self._call.set_to(self._call.get()._replace(modulation=per_site))

    def as_now(self) -> AbstractContextManager[None]:
        """A context in which forwards see the modulation of this moment; it may be entered often, and in any thread."""
        return self._call.set_to(self._call.get())

    def stopping(self) -> AbstractContextManager[None]:
        """Forwards of this thread inside end with :class:`FirstSite` where the first site is reached."""
        return self._call.set_to(self._call.get()._replace(stopping=True))

    @contextmanager
    def recording(self, examples: int, mask: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Fills the list, on leaving, with each site's mean over positions: ``(examples, width)`` in float32.

        Args:
            mask: ``(examples, length)``, 0 at padding tokens, which are left out of the mean.
        """
        found: list[Tensor] = []
        recording = _Recording(examples, mask)
        with self._call.set_to(self._call.get()._replace(recording=recording)):
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

    def at_site(self, i: int, layer: nn.Module, x: Tensor) -> Tensor | None:
        """What becomes of the activation of a site; None leaves it as it is."""
        call = self._call.get()
        if call.stopping:
            raise FirstSite
        if call.recording is not None:
            means = call.recording.means.setdefault(i, [])
            means.append(_position_mean(x, self.sites[i].channel_dim, call.recording))
        if call.modulation is None or self._fold(i, layer, call) is not None:
            return None
        return modulate(x, *call.modulation[i], self.sites[i].channel_dim)

    def forward_at(self, i: int, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Output of a layer that can fold its modulation in, with it if this call has one, else without."""
        call = self._call.get()
        fold = self._fold(i, layer, call)
        if fold is None or call.modulation is None:
            return type(layer).forward(layer, *args, **kwargs)
        (x,), (scale, shift) = (*args, *kwargs.values()), call.modulation[i]
        return fold(layer, x, scale, shift)

    def _fold(self, i: int, layer: nn.Module, call: _Call) -> AbstractFold | None:
        """How the forward of a layer has modulated its output in this call; None where the hook has to."""
        fold = self._folds.get(i)
        return fold if fold is not None and call.tasks and fold.applies(layer, call.tasks) else None


class FirstSite(Exception):
    """The forward pass has come to the first site, and what follows is not wanted."""


class _SiteHook(LastingHook):
    def __init__(self, modulator: Modulator, site: int, layer: nn.Module) -> None:
        self.modulator, self.site, self.layer = modulator, site, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Tensor | None:
        return self.modulator.at_site(self.site, self.layer, (output or args)[0])


class _SiteForward(LastingForward):
    def __init__(self, modulator: Modulator, site: int, layer: nn.Module) -> None:
        self.modulator, self.site, self.layer = modulator, site, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.modulator.forward_at(self.site, self.layer, *args, **kwargs)


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
