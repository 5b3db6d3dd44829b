"""Which network this is: hashes of its weights, what its features depend on, and how two of these differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
import transformers
from accelerate.utils import align_module_device
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.readout import Level

_CACHE_FORMAT = 2  # one more when the same network makes other features of the same examples than before
_CHUNK = 1 << 24  # values that are converted at a time
_ROUNDING, _HALF_ROUNDING = 0.02, 0.1  # of features, relative; TF32 and half precision differ by less
_NARROWER = (torch.float32, torch.bfloat16, torch.float16)


class WeightHashes:
    """Hashes over names, shapes, dtypes and values of every parameter and buffer; the same on every device.

    They are kept until a weight changes. Torch's own counter of in-place writes and the sum of every tensor's bits tell
    that it did, so asking again costs one pass over memory (about 10 GB/s), and hashing 1 GB/s.

    Args:
        model: wherever its weights are; those that were put on disk are read from there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._state: list[Any] | None = None
        self._known: dict[tuple[bool, torch.dtype | None], str] = {}
        self._frozen = False

    def everything(self) -> str:
        """Of all parameters and buffers as they are stored."""
        return self._hash(True, None)

    def by_dtype(self) -> dict[str, str]:
        """Of all that a checkpoint holds, as it is stored and rounded to each narrower dtype: ``{"bfloat16": ...}``.

        Buffers that the network computes for itself, such as tables of positions, are left out: they differ in the last
        digit from machine to machine, and some grow with the longest text.
        """
        stored = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), torch.float32)
        dtypes = [stored] + [dtype for dtype in _NARROWER if dtype.itemsize < stored.itemsize]
        return {str(dtype).removeprefix("torch."): self._hash(False, dtype) for dtype in dtypes}

    def freeze(self) -> None:
        """Remember them, before weights go where their values cannot be read."""
        self.everything()
        self.by_dtype()
        self._frozen = True

    def _hash(self, computed: bool, dtype: torch.dtype | None) -> str:
        if not self._frozen:
            state = [_trace(name, value) for name, value in _tensors(self._model)]
            if state != self._state:
                self._state, self._known = state, {}
        key = (computed, dtype)
        if key not in self._known:
            self._known[key] = _hash_of(self._model, computed, dtype)
        return self._known[key]


def _hash_of(model: nn.Module, computed: bool, dtype: torch.dtype | None) -> str:
    kept = model.state_dict().keys()
    whole = hashlib.sha256()
    for name, value in sorted(_tensors(model), key=lambda pair: pair[0]):
        if computed or name in kept:
            value = _brought_in(model, name) if value.is_meta else value
            stored = dtype if dtype is not None and value.is_floating_point() else value.dtype
            whole.update(f"{name} {tuple(value.shape)} {stored} ".encode() + _hash_of_values(value, stored))
    return whole.hexdigest()[:32]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under all their names, and what only the ``state_dict`` has of quantized layers."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    rest = {k: v for k, v in model.state_dict().items() if k not in named and isinstance(v, Tensor) and not v.is_meta}
    yield from (named | rest).items()


def _trace(name: str, value: Tensor) -> tuple[Any, ...]:
    """What changes whenever a tensor does, found in one pass over it."""
    writes = None if value.is_inference() else value._version
    return name, value.shape, value.dtype, writes, None if value.is_meta else _sum_of_bits(value.detach())


def _sum_of_bits(value: Tensor) -> int:
    """On the tensor's own device."""
    if value.device.type == "cpu":
        data = _bytes(value)
        whole = len(data) // 8 * 8
        return int(np.add.reduce(data[:whole].view(np.uint64))) + int(data[whole:].sum())
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(value.dtype.itemsize, torch.int64)
    return int(value.flatten().view(word).sum(dtype=torch.int64))


def _hash_of_values(value: Tensor, dtype: torch.dtype) -> bytes:
    found = hashlib.sha256()
    for chunk in value.detach().flatten().split(_CHUNK):
        found.update(_bytes(chunk.cpu().to(dtype)).data)
    return found.digest()


def _bytes(value: Tensor) -> np.ndarray:
    return value.flatten().contiguous().view(torch.uint8).numpy()


def _brought_in(model: nn.Module, name: str) -> Tensor:
    """The value of a tensor that was put on disk or into main memory."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        value: Tensor = getattr(module, own)
        return value.detach().clone()


# --- what features depend on ------------------------------------------------------------------------------------------


def describe_features(
    model: nn.Module, adapter: AbstractAdapter, sites: Sequence[str], levels: Sequence[Level]
) -> dict[str, Any]:
    """What features depend on beside the weights, as JSON gives it back."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    try:
        preprocessing = dict(adapter.preprocessing())
    except ValueError:  # nothing is there to preprocess with: the network is given tensors
        preprocessing = None
    features = {
        "dtype": str(dtype).removeprefix("torch."),
        **adapter.reading(model),
        "sites": list(sites),
        "levels": [level.name for level in levels],
    }
    return json.loads(json.dumps({"features": features, "preprocessing": preprocessing}, default=str))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What features depend on and is not the same: ``"pooling: 'mean' there, 'cls' now"``.

    What only one of the two knows of does not count, and neither does another dtype of the same weights.

    Args:
        saved: of :meth:`Backbone.identity`, as it was saved.
        now: the same of another backbone.
    """
    found = [f"{k}: {saved[k]} there, {now[k]} now" for k in ("width", "modulation_width") if saved.get(k) != now[k]]
    if saved["fingerprint"] != now["fingerprint"] and not _same_weights(saved, now):
        found.insert(0, f"weights: {saved['fingerprint']} there, {now['fingerprint']} now")
    for part in ("features", "preprocessing"):
        old, new = saved.get(part) or {}, now.get(part) or {}
        changed = [k for k in old if k in new and k != "dtype" and old[k] != new[k]]
        found += [f"{k}: {_short(old[k])} there, {_short(new[k])} now" for k in changed]
    return found


def differing_answers(saved: Mapping[str, Any], now: Mapping[str, Any], exactly: bool) -> list[str]:
    """What weights alone do not tell: features of the same examples that differ by more than rounding.

    Args:
        saved: of :meth:`Backbone.answers`, as it was saved.
        now: the same of another backbone.
        exactly: both are stored in the same dtype, of 32 bits or more.
    """
    if saved["example"] != now["example"] or len(saved["features"]) != len(now["features"]):
        return []  # another version has other examples
    then, found = (torch.tensor(answers["features"], dtype=torch.float64) for answers in (saved, now))
    off = float((found - then).norm() / then.norm().clamp_min(1e-12))
    if off <= (_ROUNDING if exactly else _HALF_ROUNDING):
        return []
    return [
        f"features of the same examples: {off:.0%} off with the same weights, from another config.json (activation, "
        "heads, positions) or another version of timm or transformers"
    ]


def sample(features: Tensor) -> list[float]:
    """At most 64 of the numbers, evenly spaced, to 5 digits."""
    flat = features.detach().flatten().cpu().double()
    places = torch.linspace(0, len(flat) - 1, min(64, len(flat))).long()
    return [float(f"{value:.5g}") for value in flat[places].tolist()]


def hash_of_inputs(inputs: Inputs) -> str:
    """Of names, shapes and values."""
    found = hashlib.sha256()
    for name, value in sorted(inputs.tensors.items()):
        found.update(f"{name} {tuple(value.shape)} ".encode() + _hash_of_values(value, value.dtype))
    return found.hexdigest()[:16]


def _same_weights(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """In the dtype of one of the two: a network in bfloat16 is the same network."""
    dtypes = {saved["features"]["dtype"], now["features"]["dtype"]}
    old, new = saved["weights"], now["weights"]
    return any(old[dtype] == new[dtype] for dtype in dtypes if dtype in old and dtype in new)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value)} in all)"


def former_fingerprint(model: nn.Module) -> str:
    """What version 0.1.0 saved: a hash of parameter names, shapes and some values, in bfloat16."""
    digest = hashlib.sha256()
    named = sorted(model.named_parameters())
    for i, (name, value) in enumerate(named):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if i % max(1, len(named) // 8) == 0:
            value = _brought_in(model, name) if value.is_meta else value.detach()
            part = value.flatten()[:1024].to("cpu", torch.bfloat16)
            digest.update(part.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_key(spec: Mapping[str, Any], *details: Any) -> str:
    """A hash of a network and of how it is fed, which changes with the versions of timm and transformers.

    Args:
        spec: of the backbone.
        details: whatever else counts, with a stable ``str``.
    """
    parts = [_CACHE_FORMAT, timm.__version__, transformers.__version__, json.dumps(spec, sort_keys=True), *details]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def json_arguments(name: str, load_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of :func:`mtl.load_backbone` that made a network, as JSON holds them.

    Raises:
        ValueError: there are none, or JSON cannot hold one.
    """
    if load_args is None:
        raise ValueError(f"{name} was not made by load_backbone, so nothing says how to load it again")
    try:
        return json.loads(json.dumps(load_args))
    except TypeError as e:
        raise ValueError(f"the arguments of {name} do not fit into JSON ({e}); pass dtypes as strings") from e
