"""Arguments of ``load_backbone`` that come from a file: what a file may ask for, and where its paths lead.

A file may come from anybody, so it can choose among known networks and known sizes and names, and nothing that runs
code: that takes an argument of the caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl.networks.backbones.families import family_of

_OWN: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "sites": (str,),
    "last_k": (int, type(None)),
    "pretrained": (bool,),
    "checkpoint": (str, type(None)),
    "pooling": (str, type(None)),
    "seed": (int,),
    "levels": (str, list),
    "grid": (bool,),
    "quantization": (str,),
}
_PREPROCESSING = frozenset({"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"})
_WORD = re.compile(r"[\w.-]{1,64}")  # no path, no address, no repository
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".npy")


def saved_arguments(load: Mapping[str, Any], file: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The arguments that a file gives, with paths beside the file where they are there.

    Args:
        load: as the file has them.
        file: which it is; relative paths are sought in its folder, and then in the working directory.
        trust_remote_code: the caller's own word; the file's does not count.

    Raises:
        ValueError: for an argument or a value that a file may not give.
        FileNotFoundError: for a checkpoint that is not there.
    """
    load = {k: v for k, v in load.items() if not (k == "trust_remote_code" and (trust_remote_code or v is False))}
    for name, kinds in _OWN.items():
        if name in load and (not isinstance(load[name], kinds) or (isinstance(load[name], bool) and bool not in kinds)):
            raise ValueError(f"{file} asks for {name}={load[name]!r}: expected {_names(kinds)}; {_WAY_OUT}")
    if not load.get("name"):
        raise ValueError(f"{file} names no network; {_WAY_OUT}")
    allowed = family_of(_found(load["name"], file)).saved_arguments
    for name, value in load.items():
        if name not in _OWN and not (name in allowed and _is_harmless(name, value)):
            trusted = "trust_remote_code=True if you trust its author, or " if name == "trust_remote_code" else ""
            what = f"{name}={_short(value)}, which a file may not ask for"
            raise ValueError(f"{file} asks for {what}; pass {trusted}{_WAY_OUT.removeprefix('pass ')}")
    found = load | {"name": _found(load["name"], file)}
    if load.get("checkpoint") is not None:
        found["checkpoint"] = _checkpoint(load["checkpoint"], file)
    return found | ({"trust_remote_code": True} if trust_remote_code else {})


def relative_to(load: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same arguments with the paths that lead into ``folder`` written from there, so that it can be moved."""
    return {k: _inside(v, folder) if k in ("name", "checkpoint") and v else v for k, v in load.items()}


_WAY_OUT = "pass backbone=, a network that you loaded yourself"


def _inside(path: str, folder: Path) -> str:
    whole, root = Path(path).resolve(), folder.resolve()
    return whole.relative_to(root).as_posix() if whole.exists() and whole != root and root in whole.parents else path


def _found(name: str, file: Path) -> str:
    """The folder of a network that lies beside the file, or the name itself."""
    beside = file.parent / name
    return str(beside) if (beside / "config.json").is_file() and beside.resolve() != file.parent.resolve() else name


def _checkpoint(path: str, file: Path) -> str:
    if not path.endswith(_WEIGHTS):
        raise ValueError(f"{file} asks for checkpoint={path!r}: expected a file of {', '.join(_WEIGHTS)}; {_WAY_OUT}")
    for place in (file.parent / path, Path(path)):
        if place.is_file():
            return str(place)
    places = path if Path(path).is_absolute() else f"{path}, neither in {file.parent} nor in the working directory,"
    raise FileNotFoundError(f"{file} was trained on the checkpoint {places} which is not there; pass checkpoint=")


def _is_harmless(name: str, value: Any) -> bool:
    """Numbers, words, and lists of them; of how images are prepared, an object."""
    if isinstance(value, dict):
        keys = _PREPROCESSING if name == "pretrained_cfg_overlay" else value.keys() if name == "dtype" else ()
        return all(k in keys and not isinstance(v, dict) and _is_harmless(k, v) for k, v in value.items())
    if isinstance(value, list):
        return all(not isinstance(v, dict) and _is_harmless(name, v) for v in value)
    return value is None or isinstance(value, bool | int | float) or bool(_WORD.fullmatch(value))


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
