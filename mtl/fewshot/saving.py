"""A trained meta-learner as a folder, see :mod:`mtl.fewshot.saved_files`.

The frozen backbone is not in the folder: the config says how to load it, and a fingerprint refuses another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from mtl.fewshot.generators import GENERATORS, AbstractGenerator, make_generator
from mtl.fewshot.heads import HEADS
from mtl.fewshot.hub_files import find_learner
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.saved_backbones import relocated, saved_backbone
from mtl.fewshot.saved_files import CONFIG, WEIGHTS, from_bytes, read_files, to_bytes, write_files
from mtl.metagrad.optimizers import INNER_OPTIMIZERS
from mtl.metagrad.registry import Registry
from mtl.networks.backbones import Backbone
from mtl.tools.json_files import fits

FORMER_NAMES = {"conditioned": "dense"}  # of generators, in files that were saved under them


def save_pretrained(learner: MetaLearner, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the generator, and all that is needed to build the learner again.

    Two files, ``config.json`` and ``generator.safetensors``; both replace those of a saved learner, together or not at
    all, and no other file in the folder is touched.

    Args:
        folder: created if needed.
        extra: facts to keep beside it that JSON can hold (a step number, an accuracy).

    Raises:
        FileExistsError: the folder holds files of these names that are not a saved learner.
        ValueError: a class of the learner is not registered, or its options do not fit into JSON.
        OSError: the folder could not be written; what was there still is.
    """
    folder, config = Path(folder), describe_learner(learner)
    config["backbone"] = relocated(config["backbone"], folder)
    write_files(folder, config | {"extra": extra or {}}, learner.generator.state_dict())


def from_pretrained(
    folder: str | Path,
    backbone: str | Path | Backbone | None = None,
    *,
    checkpoint: str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> MetaLearner:
    """Build a saved learner again, from a folder or from the Hugging Face hub.

    >>> learner = mtl.from_pretrained("user/name", revision="v1")  # doctest: +SKIP

    Nothing in the folder can choose code to run: it gives numbers, and names among those known here; see the page on
    security.

    Args:
        folder: written by :func:`save_pretrained`; or ``"user/name"`` of a repository that :func:`mtl.push_to_hub`
            wrote, where no such folder is here. Two files of it are fetched, and ``learner.generator.source``
            says of which commit.
        backbone: use this one instead of loading the one that the config names; a name or a folder is loaded with the
            saved arguments.
        checkpoint: the file of the backbone's weights, where it is not where the config says.
        trust_remote_code: see :func:`mtl.load_backbone`.
        revision: branch, tag or commit on the hub; ``main`` by default.
        token: for a private repository, where you are not logged in.

    Raises:
        FileNotFoundError: the folder is not a complete saved learner, or lacks what the config refers to; neither a
            folder nor a repository has this name.
        ValueError: a file is damaged, the backbone is not the one that the generator was trained for, or a class of
            your own is not registered.
    """
    found = find_learner(folder, revision, token)
    folder = found.path
    config, state = read_files(folder)
    backbone = saved_backbone(folder / CONFIG, config["backbone"], backbone, checkpoint, trust_remote_code)
    learner = build_learner(config, backbone)
    load_state(learner.generator, state, folder / WEIGHTS)
    learner.generator.source = found.source
    return learner


def load_state(generator: AbstractGenerator, state: dict[str, Tensor], file: Path) -> None:
    """Fill a generator.

    Raises:
        ValueError: names or shapes differ; names the file.
    """
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{file} does not fit the generator that config.json describes: {why}") from error


def check_saving(learner: MetaLearner) -> None:
    """Refuse a learner that could not be saved and loaded: build it again from its config, without its weights.

    Raises:
        ValueError: naming the class that is not registered or cannot be built again from its options, and the remedy.
    """
    config = describe_learner(learner)
    with torch.random.fork_rng(devices=[]):  # building a generator draws random weights
        again = build_learner(config, learner.backbone)
    state = from_bytes(to_bytes(learner.generator.state_dict()), Path(WEIGHTS))
    shapes, found = ({k: v.shape for k, v in part.items()} for part in (state, again.generator.state_dict()))
    if shapes != found or json.dumps(describe_learner(again)) != json.dumps(config):  # as text, where NaN is NaN
        options = config["generator"]["options"]
        raise ValueError(
            f"{type(learner.generator).__name__}(sites, width, **{options}) builds another generator than the one that "
            "is being trained; pass every argument of its __init__ to super().__init__ by name"
        )


def inner_options(learner: MetaLearner) -> dict[str, Any]:
    """The options of the inner optimiser without the step sizes, which are the generator's, and without what is off."""
    optimizer: Any = learner.optimizer  # a dataclass, or there was no lr to replace
    unset = {f.name for f in fields(optimizer) if f.default is None and getattr(optimizer, f.name) is None}
    return {k: v for k, v in _options(optimizer).items() if k not in unset | {"lr"}}


def describe_learner(learner: MetaLearner) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {"mtl": version("mtl"), "backbone": learner.backbone.spec(), **describe_parts(learner)}


def describe_parts(learner: MetaLearner) -> dict[str, Any]:
    """Everything but the backbone, as JSON gives it back."""
    optimizer = _part(INNER_OPTIMIZERS, learner.optimizer, inner_options(learner))
    return {
        "generator": _part(GENERATORS, learner.generator, learner.generator.options),
        "head": _part(HEADS, learner.head, _options(learner.head)),
        "inner": {"inner_steps": learner.inner_steps, "optimizer": optimizer},
    }


def _part(registry: Registry, value: object, options: dict[str, Any]) -> dict[str, Any]:
    """The name of a class and its options, as JSON gives them back."""
    try:
        return {"kind": registry.name_of(value), "options": json.loads(json.dumps(options))}
    except TypeError as error:
        why = f"do not fit into JSON ({error}); use numbers, strings and lists"
        raise ValueError(f"the options of {type(value).__name__} {why}") from error


def _options(value: object) -> dict[str, Any]:
    if not is_dataclass(value):
        raise ValueError(f"{type(value).__name__} cannot be saved: expected a dataclass whose fields are its options")
    return {f.name: getattr(value, f.name) for f in fields(value)}


def build_learner(config: dict[str, Any], backbone: Backbone) -> MetaLearner:
    """The learner that :func:`describe_learner` described, without its weights, on a backbone.

    Raises:
        ValueError: a class is not registered, or does not take its options.
    """
    part: dict[str, Any] = config["generator"]
    kind: str = part["kind"]
    cls = GENERATORS[FORMER_NAMES.get(kind, kind)]
    generator: AbstractGenerator = _built(cls, part["options"], partial(make_generator, cls, backbone))
    optimizer = _made(INNER_OPTIMIZERS, config["inner"]["optimizer"])
    inner_steps = config["inner"]["inner_steps"]
    return MetaLearner(backbone, generator, _made(HEADS, config["head"]), inner_steps=inner_steps, optimizer=optimizer)


def _made(registry: Registry, part: dict[str, Any]) -> Any:
    cls = registry[part["kind"]]
    return _built(cls, part["options"], cls)


def _built(cls: type, options: dict[str, Any], make: Callable[..., Any]) -> Any:
    """Made from options whose types are those that the class declares; they may come from anybody."""
    try:
        hints = get_type_hints(cls if is_dataclass(cls) else cls.__init__)
    except NameError:  # of a class whose annotations name what was imported for type checkers alone
        hints = {}
    for name, value in options.items():
        if not fits(value, hints.get(name, Any)):
            raise ValueError(f"{cls.__name__} cannot be built with {name}={value!r}: expected {hints[name]}")
    try:
        return make(**options)
    except TypeError as error:
        why = f"cannot be built again from its saved options {options}: {error}"
        raise ValueError(f"{cls.__name__} {why}") from error
