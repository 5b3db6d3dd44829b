"""Identities: what a run depends on, told in settings and digests, and compared setting by setting."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtl.episode import Episode, Examples, Identified, Inputs, TaskSource

SKETCH = "sketch"
"""Key of a few projections of computed values, which rounding moves a little: compared with a tolerance."""
_TOLERANCE, _PROJECTIONS = 0.03, 8
_LISTED, _LENGTH = 6, 70  # differences that a message names, and letters of each value


def digest(*values: Any) -> str:
    """A hash of 16 letters of any values, the same in every process; the order of dictionaries and sets does not count.

    Raises:
        ValueError: a value is of a kind that another process would not recognise.

    >>> digest({"a": 1, "b": [2.0, None]}) == digest({"b": [2.0, None], "a": 1})
    True
    >>> digest("1") == digest(1)
    False
    """
    hashed = hashlib.sha256()
    for value in values:
        _update(hashed, value)
    return hashed.hexdigest()[:16]


def identity_of(source: TaskSource, indices: Iterable[int] = (0, 1)) -> dict[str, Any]:
    """The identity of a task source; one without :meth:`~mtl.episode.Identified.identity` is known by some episodes.

    Args:
        indices: of the episodes that such a source is known by; they are drawn for that.
    """
    if isinstance(source, Identified):
        return source.identity()
    episodes = {str(i): describe_episode(source.sample(i)) for i in sorted(set(indices))}
    first = next(iter(episodes), None)
    if first is not None and differences(episodes[first], describe_episode(source.sample(int(first)))):
        warnings.warn(
            f"{type(source).__name__}.sample({first}) differs from call to call: a run on it cannot be repeated, and "
            "goes on without a look at its episodes; make sample a function of the index alone",
            stacklevel=3,
        )
        return {"episodes": "differ from call to call"}
    return {"episodes": episodes}


def describe_episode(episode: Episode) -> dict[str, Any]:
    """Sizes and a digest of an episode, as JSON gives them back."""
    sides = {"support": episode.support, "query": episode.query}
    described = {name: _describe_examples(examples) for name, examples in sides.items()}
    return {"ways": episode.ways, "families": list(episode.families), **described}


def _describe_examples(examples: Examples) -> dict[str, Any]:
    return {"labels": digest(examples.labels), "count": examples.labels.shape[1], **describe_inputs(examples.inputs)}


def describe_inputs(inputs: Inputs) -> dict[str, Any]:
    """A digest of inputs that were read or drawn, and a sketch of those that a network computed."""
    read = {name: t for name, t in inputs.tensors.items() if not Inputs({name: t}).computed}
    computed = {name: sketch(t) for name, t in inputs.tensors.items() if name not in read}
    return ({"inputs": digest(read)} if read else {}) | ({"computed": computed} if computed else {})


def sketch(values: Tensor) -> dict[str, Any]:
    """Norm and some random projections of a tensor: nearly the same for values that differ by rounding only."""
    flat = values.detach().to("cpu", torch.float64).reshape(len(values) if values.dim() else 1, -1)
    norm = float(flat.norm())
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(_PROJECTIONS, n, generator=generator, dtype=torch.float64) for n in flat.shape)
    projected = torch.einsum("kr,rc,kc->k", rows, flat, columns) / max(norm, 1e-30)
    return {"shape": list(values.shape), SKETCH: [round(v, 6) for v in [math.log1p(norm), *projected.tolist()]]}


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as JSON gives it back: tuples become lists, numbers of numpy plain ones.

    Raises:
        ValueError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(identity, default=_plain))
    except TypeError as error:
        raise ValueError(
            f"an identity does not fit into JSON ({error}); use numbers, strings, lists and dicts"
        ) from error


def _plain(value: Any) -> Any:
    """Numbers of numpy and paths, which JSON does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase per setting that differs: its name with dots, and the value of both.

    >>> differences({"tasks": {"ways": 5, "shots": 1}}, {"tasks": {"ways": 3, "shots": 1}})
    ['tasks.ways: 5 there, 3 now']
    """
    then, found = (_flat(identity) if identity else {} for identity in (before, now))
    names = list(dict.fromkeys([*found, *then]))
    return [
        f"{name}: {_shown(then, name)} there, {_shown(found, name)} now"
        for name in names
        if not (name in then and name in found and _same(name, then[name], found[name]))
    ]


def list_differences(found: Sequence[str]) -> str:
    """The first of these phrases, and the number of the others."""
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return "; ".join(found[:_LISTED]) + more


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Values by dotted name. Lists of numbers and strings count as one value."""
    if isinstance(value, Mapping) and value:
        parts = {str(k): v for k, v in value.items()}
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping | list | tuple) for v in value):
        parts = {str(i): v for i, v in enumerate(value)}
    else:
        return {name: list(value) if isinstance(value, tuple) else value}
    return {k: v for part, inner in parts.items() for k, v in _flat(inner, f"{name}.{part}" if name else part).items()}


def _same(name: str, a: Any, b: Any) -> bool:
    if name.rpartition(".")[2] == SKETCH and isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(math.isclose(x, y, abs_tol=_TOLERANCE) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return type(a) is type(b) and a == b if isinstance(a, bool) or isinstance(b, bool) else a == b


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "nothing"
    text = repr(values[name]).replace("\n", " ")
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def _update(hashed: Any, value: Any) -> None:
    """Add a value, after its kind and size, so that no two values are the same bytes."""
    kind, contents = _contents(value)
    if isinstance(contents, list):
        hashed.update(f"{kind}:{len(contents)};".encode())
        for part in contents:
            _update(hashed, part)
    else:
        hashed.update(f"{kind}:{len(contents)};".encode())
        hashed.update(contents)


def _contents(value: Any) -> tuple[str, bytes | list[Any]]:
    if value is None or isinstance(value, bool | int | float | complex):
        return type(value).__name__, repr(value).encode()
    if isinstance(value, str | Path):
        return "str", str(value).encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", bytes(value)
    if isinstance(value, Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)}", _bytes(value)
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes()
    if isinstance(value, np.generic):
        return f"array {value.dtype.str} ()", value.tobytes()
    if isinstance(value, Image.Image):
        return (
            f"image {value.mode} {value.size} {value.getpalette() and tuple(value.getpalette() or ())}",
            value.tobytes(),
        )
    return _parts(value)


def _parts(value: Any) -> tuple[str, bytes | list[Any]]:
    if isinstance(value, Mapping):
        return "mapping", sorted(([digest(k), v] for k, v in value.items()), key=lambda pair: pair[0])
    if isinstance(value, Set):
        return "set", sorted(digest(v) for v in value)
    if isinstance(value, list | tuple | np.ndarray):
        return "sequence", list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__qualname__, [[f.name, getattr(value, f.name)] for f in fields(value)]
    if " at 0x" not in (text := repr(value)) and "..." not in text:  # nor cut short
        return type(value).__qualname__, text.encode()
    try:
        return type(value).__qualname__, pickle.dumps(value, protocol=5)
    except Exception as error:  # whatever the class raises
        raise ValueError(
            f"{text} cannot be recognised by another process ({error}); give its class a __repr__ that tells its "
            "contents, or make it a dataclass"
        ) from error


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
