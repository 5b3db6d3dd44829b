"""The frozen network itself: called on tasks, under one modulation per task."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl.episode import Inputs, RawInputs
from mtl.metagrad.execution import Execution, autocast
from mtl.metagrad.tensors import has_values
from mtl.networks.backbones.adapter import PREFIX, AbstractAdapter, noise
from mtl.networks.backbones.fingerprint import fingerprint
from mtl.networks.backbones.patching import Forward, recomputed_blocks, replaced
from mtl.networks.backbones.prefix import FrozenPrefix, NotByExample
from mtl.networks.backbones.prepared_inputs import Prepared
from mtl.networks.modulation import Modulation, Modulator, SiteKind, find_sites, uncompiled

log = logging.getLogger(__name__)

LOSS_SCALE = 2.0**10
"""Where the scale of cotangents through a float16 network starts."""


class Backbone(nn.Module):
    """A frozen network that reads features under a per-task modulation. Always in eval mode, never trained.

    Args:
        model: the network; its parameters stop requiring gradients, and it gets a forward hook per site.
        adapter: how to feed it.
        name: for messages and checkpoints.
        sites: which layers are modulated, see :func:`mtl.networks.modulation.find_sites`.
        last_k: only the last ``k`` blocks.
        load_args: what :func:`load_backbone` was called with.
        placed: where inputs go when the weights are spread over several places; None when they are in one.

    Attributes:
        checkpoint_blocks: set it to True to keep only the inputs of modulated blocks and recompute their activations on
            the way back: less memory inside an inner step, a third more time, the same numbers.
        examples_per_chunk: pass so many examples of every task through the network at a time, each chunk recomputed on
            the way back: memory no longer grows with the number of examples, a third more time, the same numbers. None
            passes all at once.
        execution: what meta-gradients have to know; set by ``precision``, :func:`mtl.shard` and ``device_map``.
        width: features per example, ``D``.
        modulation_width: channels over all sites, ``P``.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: AbstractAdapter,
        *,
        name: str,
        sites: SiteKind = "norm",
        last_k: int | None = None,
        load_args: dict[str, Any] | None = None,
        placed: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.model = uncompiled(model).requires_grad_(False).eval()
        self.adapter = adapter
        self.name = name
        self.load_args = load_args
        self.checkpoint_blocks = False
        self.examples_per_chunk: int | None = None
        self.execution = Execution()
        self.placed = placed
        self._precision: torch.dtype | None = None
        self._fingerprint: str | None = None
        inputs = self.example_inputs(2)
        self.sites = find_sites(self.model, sites, last_k, example_inputs=inputs)
        self.modulator = Modulator(self.model, self.sites)
        self.modulation_width = self.modulator.width
        with torch.no_grad():
            self.width = self._checked(self.features(inputs)).shape[-1]
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: batch statistics and dropout are frozen too, whatever a parent module asks for."""
        del mode
        return super().train(False)

    @property
    def precision(self) -> torch.dtype | None:
        """``torch.bfloat16`` or ``torch.float16`` runs the network, and nothing else, under autocast; None as stored.

        Scale, shift, features and all gradients stay in float32. A network that is *stored* in bfloat16
        (``load_backbone(..., dtype="bfloat16")``) needs half the memory and no autocast.

        Raises:
            ValueError: when set to another dtype.
        """
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"precision={dtype}: expected torch.bfloat16, torch.float16, or None to run it as stored")
        self._precision = dtype
        self.execution = replace(self.execution, loss_scale=LOSS_SCALE if dtype == torch.float16 else None)

    def prepare(self, inputs: Inputs | RawInputs | Prepared) -> Prepared:
        """Compute once what lies below the first site, for inputs that will be used several times.

        Worth it from the second use on. With ``last_k`` blocks modulated, what is left to compute are those blocks.
        """
        prefix, taken = self._prefix, self._taken(inputs)
        if not prefix or taken.stored is not None:
            return taken

        def recorded(piece: Prepared) -> Prepared:
            flat = piece.inputs.flatten()
            return Prepared(piece.inputs, prefix.record(lambda: self.features(flat)))

        return Prepared.join([recorded(piece) for piece in taken.split(self.examples_per_chunk)])

    def with_prefix(self, inputs: Inputs | RawInputs) -> Any:
        """Tokens ``(n, length)`` by name, and with them, as ``"prefix"``, what the frozen prefix makes of each token.

        To be cached with the tokens: whatever takes inputs then skips the prefix. It is on the CPU, ``(n, length,
        width)``. Where the prefix is not one tensor of that shape (rotary networks, images), inputs are as they were.
        """
        inputs = Inputs.of(inputs)
        if not (inputs.named and self._prefix and self._prefix.by_token):
            return inputs.raw
        stored = self._prefix.record(lambda: self.features(inputs))
        return inputs.raw | {PREFIX: self._prefix.per_token(stored).cpu()}

    def _taken(self, inputs: Inputs | RawInputs | Prepared) -> Prepared:
        """Inputs, and apart from them a prefix that came with them.

        Raises:
            ValueError: when there is no task axis.
        """
        if isinstance(inputs, Prepared):
            return inputs
        inputs = Inputs.of(inputs)
        if len(inputs.shape) < 3:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: expected (tasks, n, ...); add the task axis")
        if not (PREFIX in inputs and self._prefix):
            return Prepared(inputs.without(PREFIX))
        rows = inputs[PREFIX].flatten(0, 1).to(self.device)
        return Prepared(inputs.without(PREFIX), self._prefix.restored(rows))

    @cached_property
    def _prefix(self) -> FrozenPrefix | None:
        """Found by watching one forward pass, and checked on another."""
        inputs = self.example_inputs(2)
        sites, unbroken = [s.name for s in self.sites], self.execution.lockstep
        try:
            prefix = FrozenPrefix(self.model, sites, lambda n: self.features(self.example_inputs(n)), unbroken)
        except NotByExample:
            log.warning("%s: its frozen prefix mixes examples; it is computed every time", self.name)
            return None
        random = noise(1, self.modulation_width).to(self.device)
        modulation = Modulation(1 + 0.1 * random, 0.1 * random)
        with torch.no_grad(), self.modulator.modulating(modulation):
            plain = self.features(inputs)
            with prefix.replaying(prefix.record(lambda: self.features(inputs))):
                replayed = self.features(inputs)
        if not has_values(plain) or torch.allclose(plain, replayed, rtol=1e-3, atol=1e-3 * float(plain.abs().max())):
            return prefix
        log.warning("%s: replaying its frozen prefix changes the features; it is computed every time", self.name)
        return None

    def forward(self, inputs: Inputs | RawInputs | Prepared, modulation: Modulation | None = None) -> Tensor:
        """Features of every task's examples under that task's modulation, all tasks in one batch.

        Args:
            inputs: ``(tasks, n, ...)``, or tokens by name, each ``(tasks, n, length)``; prepared or not.
            modulation: ``(tasks, P)`` scale and shift; None is the plain network.

        Returns:
            ``(tasks, n, D)``.

        Raises:
            ValueError: tasks or widths of inputs and modulation differ.
        """
        prepared = self._taken(inputs)
        tasks, _ = prepared.shape
        if modulation is not None and modulation.tasks != tasks:
            raise ValueError(
                f"inputs hold {tasks} tasks but the modulation {modulation.tasks}; "
                "expand a shared modulation to one row per task"
            )
        if self.examples_per_chunk is None or prepared.shape[1] <= self.examples_per_chunk:
            return self._pass(prepared, modulation)
        if modulation is None or not torch.is_grad_enabled():
            return torch.cat([self._pass(piece, modulation) for piece in prepared.split(self.examples_per_chunk)], 1)
        # What lies below the first site is not computed again on the way back.
        pieces = self.prepare(prepared).split(self.examples_per_chunk)
        return torch.cat([self._recomputed_pass(piece, modulation) for piece in pieces], 1)

    def _pass(self, prepared: Prepared, modulation: Modulation | None) -> Tensor:
        with self.modulator.modulating(modulation), replaced(self._recomputed_blocks()), self._replaying(prepared):
            return self.features(prepared.inputs.flatten()).unflatten(0, (prepared.shape[0], -1))

    def _recomputed_pass(self, prepared: Prepared, modulation: Modulation) -> Tensor:
        """The same, of which only the inputs are remembered for the way back."""

        def run(scale: Tensor, shift: Tensor) -> Tensor:
            return self._pass(prepared, Modulation(scale, shift))

        return checkpoint(run, modulation.scale, modulation.shift, use_reentrant=False, preserve_rng_state=False)

    def _recomputed_blocks(self) -> dict[nn.Module, Forward]:
        wanted = self.checkpoint_blocks and torch.is_grad_enabled()
        return recomputed_blocks(self.model, self.sites, self.modulator) if wanted else {}

    def _replaying(self, prepared: Prepared) -> AbstractContextManager[None]:
        return self._prefix.replaying(prepared.stored) if prepared.stored and self._prefix else nullcontext()

    @torch.no_grad()
    def observe(self, inputs: Inputs | RawInputs | Prepared) -> tuple[Tensor, list[Tensor]]:
        """What the plain network makes of the examples, without a graph.

        Returns:
            Features ``(tasks, n, D)``, and for each site its activation averaged over positions ``(tasks, n, C)`` in
            float32. Padding tokens are left out.
        """
        pieces = [self._observe(piece) for piece in self._taken(inputs).split(self.examples_per_chunk)]
        features, activations = zip(*pieces, strict=True)
        return torch.cat(features, 1), [torch.cat(of_site, 1) for of_site in zip(*activations, strict=True)]

    def _observe(self, prepared: Prepared) -> tuple[Tensor, list[Tensor]]:
        flat, tasks = prepared.inputs.flatten(), prepared.shape[0]
        with self.modulator.recording(flat.count, flat.tensors.get("attention_mask")) as means:
            features = self._pass(prepared, None).flatten(0, 1)
        return features.unflatten(0, (tasks, -1)), [m.unflatten(0, (tasks, -1)) for m in means]

    def features(self, inputs: Inputs | RawInputs, model: nn.Module | None = None) -> Tensor:
        """Features ``(n, D)`` of inputs without a task axis, under the modulation in force.

        Args:
            inputs: on any device.
            model: a copy of the network, such as a merged or an exported one, to call in its place as it is stored.
        """
        if model is not None:
            like = next(model.parameters())
            return self.adapter.features(model, Inputs.of(inputs).without(PREFIX).to(like.device, like.dtype).raw)
        with autocast(self.device, self.precision):
            return self.adapter.features(self.model, self._cast(inputs).raw)

    def preprocess(self, items: Sequence[Any]) -> Any:
        """PIL images to ``(n, C, H, W)``, or strings to a dict of token tensors ``(n, L)``; on the CPU."""
        return self.adapter.preprocess(items)

    def example_inputs(self, n: int) -> Inputs:
        """``n`` random examples of the shape the network takes, on its device; the same ones every time."""
        return self._cast(self.adapter.example(n))

    def fingerprint(self) -> str:
        """A short hash of parameter names, shapes and some values; the same on every device and in bfloat16."""
        return self._fingerprint or fingerprint(self.model)

    def freeze_fingerprint(self) -> None:
        """Remember the fingerprint; before weights go where their values cannot be read."""
        self._fingerprint = self.fingerprint()

    def place(self, device: torch.device, execution: Execution) -> None:
        """Note that the weights have been spread: inputs go to ``device``, and nothing moves the weights any more."""
        self.placed, self.execution = device, execution
        self.__dict__.pop("_prefix", None)  # found again, as the network runs now

    def to(self, *args: Any, **kwargs: Any) -> Backbone:
        """Move it, unless its weights have places of their own."""
        return self if self.placed else super().to(*args, **kwargs)

    def lower_loss_scale(self) -> bool:
        """After an overflow of float16: sixteen times less, if that leaves one or more. Whether it did."""
        scale = self.execution.loss_scale
        if scale is None or scale < 16:
            return False
        self.execution = replace(self.execution, loss_scale=scale / 16)
        return True

    def spec(self) -> dict[str, Any]:
        """JSON-able: ``load_backbone(**spec["load"])`` builds this backbone again, ``fingerprint`` says whether it did.

        Raises:
            ValueError: built without :func:`load_backbone`, or with an argument that JSON cannot hold.
        """
        if self.load_args is None:
            raise ValueError(f"{self.name} was not made by load_backbone, so nothing says how to load it again")
        try:
            load = json.loads(json.dumps(self.load_args))
        except TypeError as e:
            raise ValueError(f"the arguments of {self.name} do not fit into JSON ({e}); pass dtypes as strings") from e
        return {
            "load": load,
            "width": self.width,
            "modulation_width": self.modulation_width,
            "fingerprint": self.fingerprint(),
        }

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.placed or next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored weights; of those that are numbers, where others are quantized."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def low_precision(self) -> bool:
        """Whether the network runs in less than float32, stored or under autocast."""
        return self.precision is not None or self.dtype in (torch.bfloat16, torch.float16)

    def _cast(self, inputs: Inputs | RawInputs) -> Inputs:
        """To the network's device, and floats to its dtype: a network stored in bfloat16 takes no float32 image."""
        return Inputs.of(inputs).without(PREFIX).to(self.device, self.dtype)

    def _checked(self, features: Tensor) -> Tensor:
        if features.dim() != 2:
            raise ValueError(
                f"{self.name} gives features of shape {tuple(features.shape)}: expected (n, D); choose a pooling"
            )
        return features
