"""The frozen network itself: called on tasks, under one modulation per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl.episode import READOUT, Inputs, RawInputs
from mtl.metagrad.execution import Execution, autocast
from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.finding import once
from mtl.networks.backbones.layout import takes_channels_last, with_channels_last
from mtl.networks.backbones.options import LOSS_SCALE, ForwardOptions, Placement
from mtl.networks.backbones.packing import Packing, find_packing
from mtl.networks.backbones.passes import Passes
from mtl.networks.backbones.prefix import FrozenPrefix, find_prefix
from mtl.networks.backbones.prepared_inputs import Prepared, check_like, count_of, divided, halved
from mtl.networks.backbones.recognition import AbstractRecognisable
from mtl.networks.modulation import (
    CopyableLock,
    Modulation,
    Modulator,
    SiteKind,
    find_sites,
    restore_compiled_parts,
    without_nested_tensors,
)
from mtl.networks.readout import Choice, Level, Readout, precise

_FOUND = ("_prefix", "_packing")


class Backbone(AbstractRecognisable):
    """A frozen network that reads features under a per-task modulation. Always in eval mode, never trained.

    Threads may call it at once. It can be copied and pickled, unless its weights are sharded or spread.

    Args:
        model: the network; its parameters stop requiring gradients, and it gets a forward hook per site. What
            ``torch.compile`` did to it or to its parts is undone, because compiled code may ignore hooks.
        adapter: how to feed it.
        name: for messages and saved files.
        sites: which layers are modulated, see :func:`mtl.networks.modulation.find_sites`.
        last_k: only the last ``k`` blocks.
        levels: which stages are read, see :func:`load_backbone`.
        grid: read the stages of images on a grid too.
        load_args: the arguments of :func:`load_backbone` that made it.
        placement: of weights that are in more than one place; None when they are in one.

    Attributes:
        options: how features are computed, set by :meth:`configure`.
        levels: what the features consist of, block by block; the network's own pooled features are the last block, and
            the only one with ``levels="last"``.
        width: features per example, ``D``: the widths of the levels together.
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
        levels: Choice = "last",
        grid: bool = True,
        load_args: dict[str, Any] | None = None,
        placement: Placement | None = None,
    ) -> None:
        super().__init__()
        self.model = restore_compiled_parts(model).requires_grad_(False).eval()
        self.adapter = adapter
        self.name = name
        self.load_args = load_args
        self.options = ForwardOptions()
        self.placement = placement
        self._lock = CopyableLock()
        self._expected = Inputs.of(adapter.example(1))
        if sites != "none" or levels != "last":
            without_nested_tensors(self.model)
        inputs = self.example_inputs(2)
        self.sites = find_sites(self.model, sites, last_k, example_inputs=inputs)
        self.modulator = Modulator(self.model, self.sites)
        self.modulation_width = self.modulator.width
        self.readout: Readout | None = None
        self._channels_last = False
        with torch.no_grad():
            own = self._check(self.features(inputs)).shape[-1]
        if levels != "last":
            self.readout = self._read_levels(levels, grid)
        grey = not inputs.named and inputs.tensor.shape[1] == 1
        if self._convolutional and (self.sites or not grey):  # kept readouts of grey images stay as they are
            self._channels_last = takes_channels_last(self._own, inputs)
        self.levels = self.readout.levels if self.readout else (Level("own", "own", 0, 1.0, own),)
        self.width = sum(level.width for level in self.levels)
        self.eval()

    def configure(self, **changes: Any) -> Backbone:
        """Change some of the :class:`ForwardOptions`, such as ``configure(checkpoint_blocks=True)``; returns itself.

        A new ``precision`` starts at the default ``loss_scale``.

        Raises:
            ValueError: for a value out of range.
            TypeError: for an option that there is not.
        """
        fresh = {"loss_scale": LOSS_SCALE} if "precision" in changes else {}
        self.options = replace(self.options, **(fresh | changes))
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ForwardOptions.__dataclass_fields__:  # or it would be set, and change nothing
            raise AttributeError(f"{name} is one of the backbone's options: write backbone.configure({name}={value!r})")
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: batch statistics and dropout are frozen too, whatever a parent module asks for."""
        del mode
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; what is found at the first use is found again.

        Raises:
            TypeError: its weights are in more than one place.
        """
        if self.placement is not None:
            raise TypeError(
                f"cannot copy or pickle {self.name}: its weights are sharded or spread over several places; "
                "load it anew where it is needed"
            )
        return {k: v for k, v in super().__getstate__().items() if k not in _FOUND}

    # --- features ----------------------------------------------------------------------------------------------------

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
        prepared = self._with_task_axis(inputs)
        tasks, _ = prepared.shape
        if modulation is not None and modulation.tasks != tasks:
            raise ValueError(
                f"inputs hold {tasks} tasks but the modulation {modulation.tasks}; "
                "expand a shared modulation to one row per task"
            )
        if self.sites or modulation is None or modulation.width:  # the width is checked there
            return self._passes.modulated(prepared, modulation)
        with torch.no_grad():
            return self._passes.modulated(prepared, None)

    def observe(self, inputs: Inputs | RawInputs | Prepared) -> tuple[Tensor, list[Tensor]]:
        """Features and activations of the plain network, without a graph.

        Returns:
            Features ``(tasks, n, D)``, and for each site its activation averaged over positions ``(tasks, n, C)`` in
            float32. Padding tokens are left out.
        """
        return self._passes.observe(self._with_task_axis(inputs))

    def features(self, inputs: Inputs | RawInputs, model: nn.Module | None = None) -> Tensor:
        """Features ``(n, D)`` of inputs without a task axis, under the modulation in force.

        Args:
            inputs: on any device.
            model: a copy of the network, such as a merged or an exported one, to call in its place as it is stored.
        """
        inputs = Inputs.of(inputs)
        if READOUT in inputs:
            return self._finished(inputs[READOUT])
        if inputs.computed:
            raise ValueError(
                f"inputs carry nothing but the frozen prefix of {self.name}, which needs a task axis: call the "
                "backbone itself, or give the images"
            )
        if model is None:
            return self._features(inputs)
        like = next(model.parameters())
        own, _ = divided(inputs)
        assert own is not None
        check_like(own, self._expected, self.name)
        inputs, read = self._laid_out(own.to(like.device, like.dtype)), partial(_features_of, self.adapter, model)
        return read(inputs) if self.readout is None else self.readout.read(model, inputs, read)

    def _features(self, inputs: Inputs) -> Tensor:
        """The same of the network itself; of inputs without images while a prefix is replayed."""
        if READOUT in inputs:
            return self._finished(inputs[READOUT])
        own, _ = divided(inputs)
        if own is None:
            own = self._blank(inputs.count)
        else:
            check_like(own, self._expected, self.name)
            own = self._laid_out(own.to(self.device, self.dtype))
        return self._own(own) if self.readout is None else self.readout.read(self.model, own, self._own)

    def _laid_out(self, inputs: Inputs) -> Inputs:
        """Images of a convolutional network with channels last in memory."""
        return with_channels_last(inputs) if self._channels_last else inputs

    @property
    def _convolutional(self) -> bool:
        """Whether the stages that are read, or else the modulated ones, are all maps."""
        if self.readout is not None:
            return self.readout.convolutional
        return bool(self.sites) and all(site.channel_dim == 1 for site in self.sites)

    def _blank(self, n: int) -> Inputs:
        """Images that nobody looks at, without memory for each."""
        return Inputs.of(self.adapter.example(1)).to(self.device, self.dtype).map(lambda x: x.expand(n, *x.shape[1:]))

    def _finished(self, readout: Tensor) -> Tensor:
        """Features that were computed before."""
        if self.sites:
            raise ValueError(
                f"inputs carry a finished readout, but {self.name} has {len(self.sites)} sites that change it; load it "
                "with sites='none', or give the images or tokens themselves"
            )
        if readout.shape[-1] != self.width:
            raise ValueError(
                f"inputs carry a readout {readout.shape[-1]} wide, but {self.name} has {self.width} features; compute "
                "it with this backbone's with_prefix"
            )
        return precise(readout.to(self.device))

    def _read_levels(self, levels: Choice, grid: bool) -> Readout:
        sites = [s.name for s in self.sites]
        positions = self.adapter.positions(self.model)
        example = self.example_inputs(3)
        return Readout(self.model, self._own, example, positions, levels=levels, grid=grid, sites=sites)

    def _own(self, inputs: Inputs) -> Tensor:
        """The network's own pooled features."""
        with autocast(self.device, self.options.precision):
            return self.adapter.features(self.model, inputs.raw)

    @property
    def last(self) -> slice:
        """Where the network's own pooled features are among the features."""
        return slice(self.width - self.levels[-1].width, self.width)

    @property
    def preprocess(self) -> Callable[[Sequence[Any]], Any]:
        """Images to ``(n, C, H, W)``, or texts to token tensors ``(n, L)`` by name; see :func:`mtl.items.as_items`.

        A function without the network, so that it can go to the processes that load data.
        """
        return self.adapter.preprocess

    def precompute(self, items: Sequence[Any]) -> Any:
        """:meth:`with_prefix` of preprocessed images or strings, such as for :class:`mtl.data.InputCache`."""
        return self.with_prefix(self.preprocess(items))

    def example_inputs(self, n: int) -> Inputs:
        """``n`` random examples of the shape the network takes, on its device; the same ones every time."""
        return self._cast(self.adapter.example(n))

    def _cast(self, inputs: Inputs | RawInputs) -> Inputs:
        """To the network's device, and floats to its dtype: a network stored in bfloat16 takes no float32 image."""
        return Inputs.of(inputs).to(self.device, self.dtype)

    def _check(self, features: Tensor) -> Tensor:
        if features.dim() != 2:
            raise ValueError(
                f"{self.name} gives features of shape {tuple(features.shape)}: expected (n, D); choose a pooling"
            )
        return features

    # --- the frozen prefix -------------------------------------------------------------------------------------------

    def prepare(self, inputs: Inputs | RawInputs | Prepared) -> Prepared:
        """Compute once what lies below the first site, for inputs that will be used several times.

        Worth it from the second use on. With ``last_k`` blocks modulated, only those blocks are left to compute.
        """
        prepared = self._with_task_axis(inputs)
        if self.sites:
            return self._passes.prepare(prepared)
        if READOUT in prepared.inputs:
            return prepared
        with torch.no_grad():
            return Prepared(Inputs({READOUT: self._passes.modulated(prepared, None)}))

    def with_prefix(self, inputs: Inputs | RawInputs) -> Any:
        """What the frozen part of the network makes of inputs, to be cached in their place.

        With ``sites="none"`` that is ``{"readout": (n, D)}``, the finished features: float16 on the CPU, float32 where
        they exceed its range. Everything that takes inputs takes these, and the network does not run again.

        With sites: what the rest of the network reads of it. For images the network's maps at that point, ``prefix.0``
        and so on in float16, and no images; for texts the tokens and, as ``"prefix"``, vectors ``(n, length, width)``
        that are cut and padded like tokens. With several levels also ``prefix.levels``, the pooled vectors of those
        below the first site. Inputs are returned as they are where the rest reads more than that.
        """
        inputs = Inputs.of(inputs)
        if not self.sites:
            return {READOUT: halved(self._pieces(inputs))}
        if self._packing is None:
            return inputs.raw
        stored = self._passes.prepare(Prepared(inputs.with_task_axis())).stored
        return ({} if stored is None else self._packing.pack(stored)) | (inputs.raw if inputs.named else {})

    @torch.no_grad()
    def _pieces(self, inputs: Inputs) -> Tensor:
        """Features ``(n, D)``, so many examples at a time as the options say."""
        return self._passes.modulated(Prepared(inputs.with_task_axis()), None)[0]

    def _with_task_axis(self, inputs: Inputs | RawInputs | Prepared) -> Prepared:
        """Inputs, and apart from them a prefix that came with them."""
        if isinstance(inputs, Prepared):
            return inputs
        inputs = Inputs.of(inputs)
        if len(inputs.shape) < 3:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: expected (tasks, n, ...); add the task axis")
        own, prefix = divided(inputs)
        if own is not None and not (prefix and self._packing):
            return Prepared(own)
        if self._packing is None:
            raise ValueError(
                f"inputs carry {', '.join(prefix)}, and no images; {self.name} reads the images themselves: give those"
            )
        rows = {name: tensor.flatten(0, 1).to(self.device) for name, tensor in prefix.items()}
        return Prepared(count_of(inputs) if own is None else own, self._packing.unpack(rows))

    @once
    def _prefix(self) -> FrozenPrefix | None:
        if not self.sites:
            return None
        features = lambda n: self._features(self.example_inputs(n))  # noqa: E731
        unbroken = self.execution.lockstep
        return find_prefix(self.name, self.modulator, features, self.device, unbroken, self.readout)

    @once
    def _packing(self) -> Packing | None:
        if not self._prefix:
            return None
        return find_packing(self.name, self._prefix, self._passes, self.example_inputs(3).with_task_axis())

    @property
    def _passes(self) -> Passes:
        # Weights that are moved in and out as it runs are in one place at a time.
        lock = None if self.placement is None else self._lock
        unbroken = self.execution.lockstep
        return Passes(self._features, self.modulator, self.options, lambda: self._prefix, lock, unbroken)

    # --- where it is -------------------------------------------------------------------------------------------------

    @property
    def execution(self) -> Execution:
        """Constraints that the network puts on differentiation."""
        execution = Execution() if self.placement is None else self.placement.execution
        half = self.options.precision == torch.float16
        return replace(execution, loss_scale=self.options.loss_scale if half else None)

    def place(self, placement: Placement) -> None:
        """Note that the weights have been spread: nothing moves them any more."""
        self.placement = placement
        for found in _FOUND:
            vars(self).pop(found, None)  # found again, as the network runs now

    def to(self, *args: Any, **kwargs: Any) -> Backbone:
        """Move it, unless its weights have places of their own."""
        return self if self.placement else super().to(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.placement.device if self.placement else next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored weights; of those that are numbers, where others are quantized."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def low_precision(self) -> bool:
        """Whether the network runs in less than float32, stored or under autocast."""
        return self.options.precision is not None or self.dtype in (torch.bfloat16, torch.float16)


def _features_of(adapter: AbstractAdapter, model: nn.Module, inputs: Inputs) -> Tensor:
    return adapter.features(model, inputs.raw)
