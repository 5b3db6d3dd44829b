"""Where a frozen network is modulated, and how: scale and shift after chosen layers, by forward hooks.

Hooks are the one mechanism that reaches any module of any library, keeps ``state_dict`` keys, and takes a different
vector for every task of a batch. They are installed once; a call that modulates nothing pays a ``None`` test per site.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from mtl.episode import Inputs

log = logging.getLogger(__name__)

SiteKind = Literal["norm", "ssf"]

# Norms that subclass no torch norm: LlamaRMSNorm, T5LayerNorm, timm RmsNorm2d and SimpleNorm, frozen batch norms.
_NORM_NAME = re.compile(r"((RMS|Rms|Layer|Simple)Norm(2d)?(Fp32)?|FrozenBatchNorm(Act)?2d)$")


@dataclass(frozen=True)
class Site:
    """A place in the network whose activation is scaled and shifted, channel by channel.

    Args:
        name: dotted path of the module, ``"blocks.3.norm1"``.
        width: number of channels.
        channel_dim: ``-1`` for tokens and channels-last maps, ``1`` for NCHW maps.
        block: path up to the last numbered ancestor, ``"blocks.3"``; ``""`` when there is none.
    """

    name: str
    width: int
    channel_dim: int
    block: str


@dataclass(frozen=True)
class Modulation:
    """One scale and one shift per channel of every site: ``y = scale * x + shift``.

    Args:
        scale: ``(tasks, P)``, with ``P`` the sum of the site widths, in site order.
        shift: ``(tasks, P)``.
    """

    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.scale.dim() != 2 or self.scale.shape != self.shift.shape:
            raise ValueError(
                f"Modulation(scale {tuple(self.scale.shape)}, shift {tuple(self.shift.shape)}): "
                "both must be (tasks, P); add the task axis with unsqueeze(0)"
            )

    @property
    def tasks(self) -> int:
        return self.scale.shape[0]

    @property
    def width(self) -> int:
        return self.scale.shape[1]

    @staticmethod
    def identity(
        tasks: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Modulation:
        """The modulation that changes nothing, in ``dtype`` (float32 also for a bfloat16 network).

        >>> Modulation.identity(2, 3).scale.tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
        """
        shape = (tasks, width)
        return Modulation(torch.ones(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))


# --- finding sites ---------------------------------------------------------------------------------------------------


def find_sites(
    model: nn.Module, kind: SiteKind = "norm", last_k: int | None = None, *, example_inputs: Inputs
) -> tuple[Site, ...]:
    """The sites of a model, in the order in which one forward pass reaches them.

    ``norm`` takes every normalisation layer. ``ssf`` adds every ``nn.Linear``, transformers ``Conv1D``, ``nn.Conv2d``,
    except the classifier, poolers, and convolutions without bias: a norm follows those, and its modulation at fixed
    statistics does all that theirs could.

    A layer that is not called is no site (its weights are read directly, or it is dead), nor is one whose output does
    not hold the examples one after the other along its first axis (position tables, sequence-first attention, routed
    tokens): there is no telling which row belongs to which task. A layer called several times is modulated alike each
    time, which merges exactly; called with different output shapes, it is left out.

    Args:
        model: any module; it is left as it was found.
        last_k: keep the last ``k`` blocks and whatever runs after the first of them has begun.
        example_inputs: two or more different examples, ``(n, ...)`` or token tensors by name, each ``(n, length)``.

    Raises:
        ValueError: no site, fewer blocks than ``last_k``, or a single example.
    """
    model = uncompiled(model)
    layers = _candidates(model, kind)
    calls = _outputs_by_layer(model, layers, example_inputs)
    sites = tuple(_site(name, layers[name], outputs[0]) for name, outputs in calls.items())
    if not sites:
        raise ValueError(
            f"sites={kind!r}: no site in {type(model).__name__}; looked for {_looked_for(kind)} among its "
            f"{sum(1 for _ in model.modules())} modules, found {sorted(layers) or 'none'}, none called with the "
            "examples along the first axis" + ("; try sites='ssf'" if kind == "norm" else "")
        )
    return sites if last_k is None else _last_blocks(sites, last_k)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside a compiled one: hooks added to the wrapper after its first call are ignored."""
    return getattr(model, "_orig_mod", model)


def run(model: nn.Module, inputs: Inputs):
    """Call a model on one tensor, or on tensors by name."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises over one channel axis."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) == 1
    if isinstance(module, _BatchNorm | nn.GroupNorm):
        return True
    weight = getattr(module, "weight", None)
    named = any(_NORM_NAME.search(c.__name__) for c in type(module).__mro__)
    return named and isinstance(weight, Tensor) and weight.dim() == 1


def hook_point(module: nn.Module) -> tuple[nn.Module, bool]:
    """The module to hook, and whether its input (True) or its output (False) is the site's activation.

    timm fuses norm, drop and activation (``BatchNormAct2d``): there the input of ``.act`` is what a norm would return.
    """
    act = dict(module.named_children()).get("act") if is_norm(module) else None
    return (module, False) if act is None else (act, True)


def _candidates(model: nn.Module, kind: SiteKind) -> dict[str, nn.Module]:
    if kind not in ("norm", "ssf"):
        raise ValueError(f"sites={kind!r}: expected 'norm' or 'ssf'")
    head = _classifier(model)
    wanted = {n: m for n, m in model.named_modules() if m is not head and "pooler" not in n.split(".")}
    return {n: m for n, m in wanted.items() if is_norm(m) or (kind == "ssf" and _is_linear_map(m))}


def _is_linear_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) or (isinstance(module, nn.Conv2d) and module.bias is not None)


def _classifier(model: nn.Module) -> nn.Module | None:
    """timm and transformers each have a method for it; other modules have none."""
    getter = getattr(model, "get_classifier", None) or getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _looked_for(kind: SiteKind) -> str:
    norms = "LayerNorm, BatchNorm, GroupNorm, RMSNorm (also by class name)"
    return norms if kind == "norm" else f"{norms}, Linear, Conv1D and Conv2d with a bias"


def _outputs_by_layer(model: nn.Module, layers: dict[str, nn.Module], inputs: Inputs) -> dict[str, list[Tensor]]:
    """The activations of every usable layer on the examples, in execution order."""
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    n = len(first)
    if n < 2:
        raise ValueError(f"example_inputs holds {n} example; two different ones are needed to tell the batch axis")
    pair = {k: v[-2:] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[-2:]
    single = {k: v[-1:] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[-1:]
    together, alone = _trace(model, layers, pair), _trace(model, layers, single)
    good = {k: v for k, v in together.items() if _batch_major(v, alone.get(k, []))}
    if skipped := [k for k in layers if k not in good]:
        log.info("not sites (never called, or examples not along the first axis): %s", skipped)
    return good


def _trace(model: nn.Module, layers: dict[str, nn.Module], inputs: Inputs) -> dict[str, list[Tensor]]:
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str, x: object) -> None:
        # Cloned: the activation that follows may work in place. What is not a tensor can be no site.
        outputs.setdefault(name, []).append(x.detach().clone() if isinstance(x, Tensor) else torch.empty(0))

    handles = [_hook(layer, lambda x, name=name: keep(name, x)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), _evaluating(model):
            run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _hook(layer: nn.Module, f) -> RemovableHandle:
    """Call ``f`` on the site's activation; what it returns, if not None, replaces the activation."""
    target, before = hook_point(layer)
    if before:
        return target.register_forward_pre_hook(lambda _, args: f(args[0]))
    return target.register_forward_hook(lambda _, args, output: f(output))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batch_major(together: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    """Whether the second half of the rows for two examples is what the second example gives alone."""
    if len(together) != len(alone) or len({x.shape for x in together}) != 1:
        return False
    return all(_second_half_is(two, one) for two, one in zip(together, alone, strict=True))


def _second_half_is(two: Tensor, one: Tensor) -> bool:
    if one.dim() < 2 or two.shape != (2 * one.shape[0], *one.shape[1:]):
        return False
    # Batch size changes the summation order (and TF32 rounds coarsely); another example differs by far more than this.
    tolerance = 1e-2 if one.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((two[len(one) :] - one).abs().max() <= tolerance * one.abs().max())


def _site(name: str, layer: nn.Module, output: Tensor) -> Site:
    dim = _channel_dim(layer, output)
    parts = name.split(".")[:-1]
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return Site(name, output.shape[dim], dim, ".".join(parts[: numbered[-1] + 1]) if numbered else "")


def _channel_dim(layer: nn.Module, output: Tensor) -> int:
    if isinstance(layer, nn.Linear | Conv1D):
        return -1
    if isinstance(layer, nn.Conv2d | _BatchNorm | nn.GroupNorm) or "FrozenBatchNorm" in type(layer).__name__:
        return 1
    # The rest normalise the last axis unless they are made for NCHW; their weight tells, except on square cases.
    shape = getattr(layer, "normalized_shape", None)
    weight = getattr(layer, "weight", None)
    width = shape[0] if shape else len(weight) if isinstance(weight, Tensor) else output.shape[-1]
    if output.shape[-1] != width:
        return 1
    return 1 if output.dim() == 4 and output.shape[1] == width and _is_2d(layer) else -1


def _is_2d(layer: nn.Module) -> bool:
    channels_first = getattr(layer, "data_format", "") == "channels_first"  # transformers' ConvNeXt layer norm
    return channels_first or any("2d" in c.__name__ for c in type(layer).__mro__)


def _last_blocks(sites: tuple[Site, ...], k: int) -> tuple[Site, ...]:
    blocks = list(dict.fromkeys(s.block for s in sites if s.block))
    if not 1 <= k <= len(blocks):
        raise ValueError(f"last_k={k}: expected 1 to {len(blocks)}, the number of blocks; last_k=None takes every site")
    first = next(i for i, s in enumerate(sites) if s.block == blocks[-k])
    return sites[first:]


# --- applying --------------------------------------------------------------------------------------------------------


@dataclass
class _Recording:
    examples: int
    mask: Tensor | None
    means: dict[int, list[Tensor]] = field(default_factory=dict)


class Modulator:
    """Owns the hooks on a model's sites, and what they do during the call in progress.

    The parameters of a call live here only while it runs. A backward that recomputes activations (checkpointing) after
    that runs unmodulated, and torch reports the different number of saved tensors; nothing is silently wrong.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = uncompiled(model)
        self.sites = tuple(sites)
        self.width = sum(s.width for s in self.sites)
        self._active: list[tuple[Tensor, Tensor]] | None = None
        self._recording: _Recording | None = None
        self._handles: list[RemovableHandle] = []
        self.install()

    def install(self) -> None:
        """Put the hooks on the model; no effect if they are there."""
        if not self._handles:
            layers = [self.model.get_submodule(s.name) for s in self.sites]
            self._handles = [_hook(layer, lambda x, i=i: self._at_site(i, x)) for i, layer in enumerate(layers)]

    def remove(self) -> None:
        """Take the hooks off the model; :meth:`install` puts them back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def removed(self) -> Iterator[nn.Module]:
        """The model without the hooks, to copy it."""
        self.remove()
        try:
            yield self.model
        finally:
            self.install()

    @contextmanager
    def modulating(self, modulation: Modulation | None) -> Iterator[None]:
        """Forwards inside see this modulation, with rows grouped by task along their first axis.

        Raises:
            ValueError: the modulation is not as wide as the sites together.
        """
        previous, self._active = self._active, None if modulation is None else self._per_site(modulation)
        try:
            yield
        finally:
            self._active = previous

    @contextmanager
    def recording(self, examples: int, mask: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Fills the list, on leaving, with each site's mean over positions: ``(examples, width)`` in float32.

        Args:
            mask: ``(examples, length)``, 0 at padding tokens, which are left out of the mean.
        """
        found: list[Tensor] = []
        previous, self._recording = self._recording, _Recording(examples, mask)
        try:
            yield found
            calls = [self._recording.means[i] for i in range(len(self.sites))]
            found.extend(torch.stack(means).mean(0) for means in calls)
        finally:
            self._recording = previous

    def _per_site(self, modulation: Modulation) -> list[tuple[Tensor, Tensor]]:
        if modulation.width != self.width:
            raise ValueError(
                f"the modulation is {modulation.width} wide but the {len(self.sites)} sites take {self.width} channels "
                "together; build it with Modulation.identity(tasks, backbone.modulation_width)"
            )
        widths = [s.width for s in self.sites]
        return list(zip(modulation.scale.split(widths, 1), modulation.shift.split(widths, 1), strict=True))

    def _at_site(self, i: int, x: Tensor) -> Tensor | None:
        if self._recording is not None:
            means = self._recording.means.setdefault(i, [])
            means.append(_position_mean(x, self.sites[i].channel_dim, self._recording))
        if self._active is None:
            return None
        return modulate(x, *self._active[i], self.sites[i].channel_dim)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, channel_dim: int) -> Tensor:
    """``scale * x + shift`` in the dtype of ``x``.

    Args:
        x: ``(tasks * rows, ...)``, rows of one task together.
        scale: ``(tasks, C)``, any float dtype; kept in float32 outside and cast here.
        shift: ``(tasks, C)``.
        channel_dim: the axis of ``x`` that has size ``C``: 1 or -1.
    """
    tasks, width = scale.shape
    grouped = x.unflatten(0, (tasks, -1))
    shape = [tasks] + [1] * (grouped.dim() - 1)
    shape[-1 if channel_dim == -1 else channel_dim + 1] = width
    scale, shift = (v.to(x.dtype).reshape(shape) for v in (scale, shift))
    return torch.addcmul(shift, grouped, scale).flatten(0, 1)


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
