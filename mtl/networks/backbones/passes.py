"""Passing the examples of many tasks through a modulated network: in chunks, and recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtl.episode import Inputs
from mtl.networks.backbones.options import ForwardOptions
from mtl.networks.backbones.patching import checkpointed_blocks, patch_forwards
from mtl.networks.backbones.prefix import FrozenPrefix
from mtl.networks.backbones.prepared_inputs import Prepared, examples_per_pass
from mtl.networks.modulation import Modulation, Modulator

RECORDED_BYTES = 2**29  # of a prefix that nobody asked to be recorded in chunks


@dataclass(frozen=True)
class Passes:
    """Forward passes of one network under some options.

    Args:
        features: of inputs without a task axis, under the modulation in force.
        modulator: of the network's sites.
        options: see :class:`ForwardOptions`.
        prefix: finds the frozen prefix, if there is one, when it is first needed.
        lock: held by each pass, where only one thread at a time may pass through.
        unbroken: divide no pass unless the options say so.
    """

    features: Callable[[Inputs], Tensor]
    modulator: Modulator
    options: ForwardOptions
    prefix: Callable[[], FrozenPrefix | None]
    lock: AbstractContextManager[None] | None = None
    unbroken: bool = False

    def prepare(self, prepared: Prepared) -> Prepared:
        """Record the frozen prefix, chunk by chunk, unless that has been done, or would fill the memory that chunks
        save."""
        prefix = self.prefix()
        if not prefix or prepared.stored is not None:
            return prepared

        def record(piece: Prepared) -> Prepared:
            flat = piece.inputs.flatten()
            with self._alone:
                return Prepared(piece.inputs, prefix.record(lambda: self.features(flat)))

        size = self._size(prepared)
        pieces = prepared.split(size)
        first = record(next(pieces))
        times = prepared.shape[1] / first.shape[1]
        unasked = times > 1 and self.options.examples_per_chunk is None
        if unasked and first.stored is not None and first.stored.bytes * times > RECORDED_BYTES:
            return prepared
        return Prepared.join([first, *map(record, pieces)])

    def modulated(self, prepared: Prepared, modulation: Modulation | None) -> Tensor:
        """Features ``(tasks, n, D)``; None is the plain network."""
        size = self._size(prepared)
        if size is None or prepared.shape[1] <= size:
            return self._pass(prepared, modulation)
        if modulation is None or not torch.is_grad_enabled():
            return torch.cat([self._pass(piece, modulation) for piece in prepared.split(size)], 1)
        # The backward pass does not compute the frozen prefix again.
        pieces = self.prepare(prepared).split(size)
        return torch.cat([self._checkpointed_pass(piece, modulation) for piece in pieces], 1)

    def observe(self, prepared: Prepared) -> tuple[Tensor, list[Tensor]]:
        """Features ``(tasks, n, D)`` of the plain network, and the mean activation ``(tasks, n, C)`` of every site."""
        pieces = [self._observe(piece) for piece in prepared.split(self._size(prepared))]
        features, activations = zip(*pieces, strict=True)
        return torch.cat(features, 1), [torch.cat(of_site, 1) for of_site in zip(*activations, strict=True)]

    def _pass(self, prepared: Prepared, modulation: Modulation | None) -> Tensor:
        recompute = self.options.checkpoint_blocks and torch.is_grad_enabled()
        blocks = checkpointed_blocks(self.modulator) if recompute else {}
        prefix = self.prefix() if prepared.stored else None
        replay = prefix.replaying(prepared.stored) if prefix and prepared.stored else nullcontext()
        with self._alone, self.modulator.modulating(modulation), patch_forwards(blocks), replay:
            return self.features(prepared.inputs.flatten()).unflatten(0, (prepared.shape[0], -1))

    @property
    def _alone(self) -> AbstractContextManager[None]:
        return nullcontext() if self.lock is None else self.lock

    def _checkpointed_pass(self, prepared: Prepared, modulation: Modulation) -> Tensor:
        """The same, of which only the inputs are kept for the backward pass."""

        def run(scale: Tensor, shift: Tensor) -> Tensor:
            return self._pass(prepared, Modulation(scale, shift))

        return checkpoint(run, modulation.scale, modulation.shift, use_reentrant=False, preserve_rng_state=False)

    def _size(self, prepared: Prepared) -> int | None:
        """Examples of every task per chunk. Without gradients nobody needs them all at once, but for processes in
        lockstep, which make equally many passes each."""
        if self.options.examples_per_chunk is not None or self.unbroken or torch.is_grad_enabled():
            return self.options.examples_per_chunk
        return examples_per_pass(prepared.inputs)

    @torch.no_grad()
    def _observe(self, prepared: Prepared) -> tuple[Tensor, list[Tensor]]:
        flat, tasks = prepared.inputs.flatten(), prepared.shape[0]
        with self.modulator.recording(flat.count, flat.tensors.get("attention_mask")) as means:
            features = self._pass(prepared, None)
        return features, [m.unflatten(0, (tasks, -1)) for m in means]
