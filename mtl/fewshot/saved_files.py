"""The two files of a saved learner, of which either the old pair or the new one is there, whole.

``config.json`` holds a digest of the weights and one of itself. Both files are written as drafts beside the old ones;
then the weights are moved into place, and then the config. After a kill between the two moves the draft of the config
is the one whose digest fits the weights, and the reader takes it. No other file in the folder is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mtl.tools.files import draft_of, drafts_of, explain_write_errors, flush
from mtl.tools.json_files import check_fields, parse_json

CONFIG, WEIGHTS = "config.json", "generator.safetensors"
KEYS = frozenset({"mtl", "backbone", "generator", "head", "inner", "extra", "sha256", "digest"})
OURS = frozenset({"backbone", "generator", "head", "inner"})
FIELDS = {
    "backbone.load": dict,
    "backbone.fingerprint": str,
    "backbone.modulation_width": int,
    "generator.kind": str,
    "generator.options": dict,
    "head.kind": str,
    "head.options": dict,
    "inner.inner_steps": int,
    "inner.optimizer.kind": str,
    "inner.optimizer.options": dict,
}


def write_files(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a saved learner into a folder, in the place of one that is there.

    Raises:
        FileExistsError: the folder holds files of these names that are not a saved learner.
        OSError: it could not be written; what was there still is.
    """
    _check_replaceable(folder)
    weights = to_bytes(state)
    text = _sealed({**config, "sha256": {WEIGHTS: hashlib.sha256(weights).hexdigest()}})
    with explain_write_errors(folder, len(weights)):
        folder.mkdir(parents=True, exist_ok=True)
        former = [draft for name in (CONFIG, WEIGHTS) for draft in drafts_of(folder / name)]
        drafts = {name: draft_of(folder / name) for name in (WEIGHTS, CONFIG)}
        try:
            for draft, contents in zip(drafts.values(), (weights, text), strict=True):
                draft.write_bytes(contents)
                flush(draft)
            for name, draft in drafts.items():
                os.replace(draft, folder / name)
        except OSError:
            if drafts[WEIGHTS].exists():  # nothing was replaced
                for draft in drafts.values():
                    draft.unlink(missing_ok=True)
            raise
        for draft in former:  # of a killed save; until now one of them may have been the config in force
            draft.unlink(missing_ok=True)


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file; its own writer reports a full disk as an error of the format, and hides files.

    Tensors that share memory are written one by one.
    """
    return save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a saved learner.

    Raises:
        FileNotFoundError: the folder is not a complete saved learner.
        ValueError: a file is damaged, or the two do not belong together.
    """
    try:
        config, weights = _pair(folder)
    except ValueError:  # the files may just have been replaced
        config, weights = _pair(folder)
    return config, from_bytes(weights, folder / WEIGHTS)


def is_complete(folder: Path) -> bool:
    """Whether both files are there."""
    return (folder / WEIGHTS).is_file() and ((folder / CONFIG).is_file() or bool(drafts_of(folder / CONFIG)))


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a saved learner; raises what :func:`read_files` does."""
    return read_files(folder)[0]


def from_bytes(contents: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is none; names ``path``.
    """
    try:
        return load(contents)
    except SafetensorError as error:
        why = f"is damaged: {len(contents):,} bytes that are not safetensors ({error})"
        raise ValueError(f"{path} {why}; bring the file back from a copy") from error


def _pair(folder: Path) -> tuple[dict[str, Any], bytes]:
    weights, drafts = folder / WEIGHTS, drafts_of(folder / CONFIG)
    there = {WEIGHTS: weights.is_file(), CONFIG: (folder / CONFIG).is_file() or bool(drafts)}
    if missing := sorted(name for name, found in there.items() if not found):
        raise FileNotFoundError(f"{folder} is not a saved learner: {', '.join(missing)} not there")
    contents = weights.read_bytes()
    for draft in drafts:
        try:
            config = _opened(draft, contents)
        except (ValueError, FileNotFoundError):  # begun and not finished, or removed meanwhile
            continue
        if "sha256" in config:
            return config, contents
    return _opened(folder / CONFIG, contents), contents


def _opened(path: Path, weights: bytes) -> dict[str, Any]:
    """A config, after a comparison with its digests. Version 0.1.0 wrote none."""
    config = parse_json(path.read_bytes(), path)
    if unknown := sorted(config.keys() - KEYS):
        raise ValueError(f"{path} has the unknown entries {unknown}: it is damaged, or of a later version of mtl")
    if "digest" in config and config.pop("digest") != _digest(config):
        raise ValueError(
            f"{path} is not as it was saved: its digest differs; bring it back from a copy, or remove the entry "
            "'digest' if you changed it yourself"
        )
    check_fields(config, path, FIELDS)
    found = hashlib.sha256(weights).hexdigest()
    expected = config.get("sha256", {WEIGHTS: found})
    if expected != {WEIGHTS: found}:
        raise ValueError(
            f"{path.with_name(WEIGHTS)} is damaged, or does not belong to {CONFIG}: its sha256 is {found}, and "
            f"{expected} was saved; bring both files back from a copy"
        )
    return config


def _sealed(config: Mapping[str, Any]) -> bytes:
    whole: dict[str, Any] = json.loads(json.dumps(config))
    return (json.dumps(whole | {"digest": _digest(whole)}, indent=2) + "\n").encode()


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _check_replaceable(folder: Path) -> None:
    """Refuse to write over files of the same names that are somebody else's."""
    config = folder / CONFIG
    if not any((folder / name).exists() for name in (CONFIG, WEIGHTS)) or drafts_of(config):
        return
    try:
        ours = (folder / WEIGHTS).is_file() and parse_json(config.read_bytes(), config).keys() >= OURS
    except (ValueError, OSError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{folder} has a {CONFIG} or a {WEIGHTS} that is not of a saved learner, and would be replaced; save to a "
            "new folder"
        )
