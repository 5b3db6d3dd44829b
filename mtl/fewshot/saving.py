"""A trained meta-learner as a folder: ``config.json`` and ``generator.safetensors``.

The frozen backbone is not in the folder: the config says how to load it, and a fingerprint refuses another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from mtl.fewshot.generators import GENERATORS, AbstractGenerator, make_generator
from mtl.fewshot.heads import HEADS
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad.optimizers import INNER_OPTIMIZERS
from mtl.metagrad.registry import Registry
from mtl.networks.backbones import Backbone, load_backbone
from mtl.networks.backbones.identity import differences
from mtl.tools.files import atomic_folder, explain_write_errors

CONFIG, WEIGHTS = "config.json", "generator.safetensors"
FORMER_NAMES = {"conditioned": "dense"}  # of generators, in files that were saved under them


def save_pretrained(learner: MetaLearner, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the generator, and all that is needed to build the learner again.

    Args:
        folder: created, or replaced if it holds a saved learner.
        extra: facts to keep beside it that JSON can hold (a step number, an accuracy).

    Raises:
        FileExistsError: the folder holds something that is not a saved learner.
        ValueError: a class of the learner is not registered, or its options do not fit into JSON.
        OSError: the folder could not be written; what was there still is.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise FileExistsError(f"{folder} holds files but no saved learner, and would be replaced; save to a new folder")
    config = json.dumps(describe_learner(learner) | {"extra": extra or {}}, indent=2)
    state = {k: v.detach().cpu().contiguous() for k, v in learner.generator.state_dict().items()}
    weights = save(state)  # safetensors' own writer reports a full disk as an error of its format
    with explain_write_errors(folder, len(weights)), atomic_folder(folder) as fresh:
        (fresh / CONFIG).write_text(config)
        (fresh / WEIGHTS).write_bytes(weights)


def from_pretrained(folder: str | Path, backbone: Backbone | None = None) -> MetaLearner:
    """Build a saved learner again.

    Args:
        folder: written by :func:`save_pretrained`.
        backbone: use this one instead of loading the one that the config names.

    Raises:
        FileNotFoundError: the folder is not a complete saved learner.
        ValueError: the backbone is not the one that the generator was trained for, or a class of your own is not
            registered.
    """
    folder = Path(folder)
    config = read_config(folder)
    backbone = backbone or load_backbone(**config["backbone"]["load"])
    _check_backbone(folder, config["backbone"], backbone)
    learner = build_learner(config, backbone)
    learner.generator.load_state_dict(load_file(folder / WEIGHTS))
    return learner


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a saved learner.

    Raises:
        FileNotFoundError: the folder is not a complete saved learner.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved learner: {', '.join(missing)} not there")
    return json.loads((folder / CONFIG).read_text())


def check_saving(learner: MetaLearner) -> None:
    """Refuse a learner that could not be saved and loaded: build it again from its config, without its weights.

    Raises:
        ValueError: naming the class that is not registered or cannot be built again from its options, and the remedy.
    """
    config = describe_learner(learner)
    with torch.random.fork_rng(devices=[]):  # building a generator draws random weights
        again = build_learner(config, learner.backbone)
    shapes, found = ({k: v.shape for k, v in x.generator.state_dict().items()} for x in (learner, again))
    if shapes != found or describe_learner(again) != config:
        options = config["generator"]["options"]
        raise ValueError(
            f"{type(learner.generator).__name__}(sites, width, **{options}) builds another generator than the one that "
            "is being trained; pass every argument of its __init__ to super().__init__ by name"
        )


def inner_options(learner: MetaLearner) -> dict[str, Any]:
    """The options of the inner optimiser without the step sizes, which are the generator's."""
    return {k: v for k, v in _options(learner.optimizer).items() if k != "lr"}


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
    try:
        return make(**options)
    except TypeError as error:
        why = f"cannot be built again from its saved options {options}: {error}"
        raise ValueError(f"{cls.__name__} {why}") from error


def _check_backbone(folder: Path, saved: dict[str, Any], backbone: Backbone) -> None:
    """Refuse a backbone whose features are not those that the generator was trained on."""
    if "weights" in saved:
        changed = differences(saved, backbone.identity())
    else:  # by version 0.1.0, which hashed a sample of the weights
        now = {"fingerprint": backbone.former_fingerprint(), "modulation_width": backbone.modulation_width}
        changed = [f"{k}: {saved[k]} there, {now[k]} now" for k in now if saved[k] != now[k]]
    if changed:
        raise ValueError(
            f"{folder} was trained for the backbone {saved['load']['name']!r}, and {backbone.name!r} differs from it "
            f"({'; '.join(changed)}); load that backbone with the same weights and arguments, or train a generator "
            "for this one"
        )
