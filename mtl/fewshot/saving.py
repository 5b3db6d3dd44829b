"""A trained meta-learner as a folder: ``config.json`` and ``generator.safetensors``.

The frozen backbone is not in the folder: the config says how to load it, and a fingerprint refuses another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from mtl.fewshot.generators import GENERATORS
from mtl.fewshot.heads import HEADS
from mtl.fewshot.learner import MetaLearner
from mtl.metagrad.optimizers import INNER_OPTIMIZERS
from mtl.networks.backbones import Backbone, load_backbone
from mtl.tools.files import naming_failures, replacing_folder

CONFIG, WEIGHTS = "config.json", "generator.safetensors"


def save_pretrained(learner: MetaLearner, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the generator, and all that is needed to build the learner again.

    Args:
        folder: made, or replaced if it holds a saved learner.
        extra: JSON-able facts to keep beside (a step number, an accuracy).

    Raises:
        FileExistsError: the folder holds something that is not a saved learner.
        ValueError: backbone, generator or head cannot be built again from JSON.
        OSError: it could not be written; what was there still is.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise FileExistsError(f"{folder} holds files but no saved learner, and would be replaced; save to a new folder")
    config = {
        "mtl": version("mtl"),
        "backbone": learner.backbone.spec(),
        "generator": {"kind": _kind(GENERATORS, learner.generator), "options": learner.generator.options},
        "head": {"kind": _kind(HEADS, learner.head), "options": asdict(learner.head)},  # type: ignore[call-overload]
        "inner": {
            "inner_steps": learner.inner_steps,
            "optimizer": {"kind": _kind(INNER_OPTIMIZERS, learner.optimizer), "options": inner_options(learner)},
        },
        "extra": extra or {},
    }
    state = {k: v.detach().cpu().contiguous() for k, v in learner.generator.state_dict().items()}
    weights = save(state)  # safetensors' own writer reports a full disk as an error of its format
    with naming_failures(folder, len(weights)), replacing_folder(folder) as fresh:
        (fresh / CONFIG).write_text(json.dumps(config, indent=2))
        (fresh / WEIGHTS).write_bytes(weights)


def from_pretrained(folder: str | Path, backbone: Backbone | None = None) -> MetaLearner:
    """Build a saved learner again.

    Args:
        folder: written by :func:`save_pretrained`.
        backbone: use this one instead of loading the one that the config names.

    Raises:
        FileNotFoundError: when the folder is not a complete checkpoint.
        ValueError: when the backbone is not the one that the generator was trained for.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved learner: {', '.join(missing)} not there")
    config = json.loads((folder / CONFIG).read_text())
    backbone = backbone or load_backbone(**config["backbone"]["load"])
    _check_backbone(folder, config["backbone"], backbone)
    kind = GENERATORS[config["generator"]["kind"]]
    generator = kind(backbone.sites, backbone.width, **config["generator"]["options"])
    generator.load_state_dict(load_file(folder / WEIGHTS))
    head = HEADS[config["head"]["kind"]](**config["head"]["options"])
    inner = config["inner"]
    optimizer = INNER_OPTIMIZERS[inner["optimizer"]["kind"]](**inner["optimizer"]["options"])
    return MetaLearner(backbone, generator, head, inner_steps=inner["inner_steps"], optimizer=optimizer)


def inner_options(learner: MetaLearner) -> dict[str, Any]:
    """What the inner optimiser was made with, but for the step sizes, which are the generator's."""
    return {f.name: getattr(learner.optimizer, f.name) for f in fields(learner.optimizer) if f.name != "lr"}


def _check_backbone(folder: Path, saved: dict[str, Any], backbone: Backbone) -> None:
    found = backbone.spec() if backbone.load_args is not None else {"fingerprint": backbone.fingerprint()}
    if saved["fingerprint"] != found["fingerprint"] or saved["modulation_width"] != backbone.modulation_width:
        raise ValueError(
            f"{folder} was trained for the backbone {saved['load']['name']!r} with {saved['modulation_width']} "
            f"modulated channels (fingerprint {saved['fingerprint']}), not for {backbone.name!r} with "
            f"{backbone.modulation_width} ({found['fingerprint']}); load that backbone with the same weights and "
            "sites, or train a generator for this one"
        )


def _kind(table: Mapping[str, type], value: object) -> str:
    for name, cls in table.items():
        if type(value) is cls:
            return name
    raise ValueError(f"{type(value).__name__} is not one of {sorted(table)} and cannot be saved by name")
