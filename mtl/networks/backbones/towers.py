"""Checkpoints of several networks: which there are, and the one that was asked for."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

IMAGES = ("vision", "image")
_AUDIO = ("input_values", "input_features")


def choose_tower(model: Any, tower: str | None, name: str) -> tuple[Any, bool]:
    """The network to read, and whether it reads images; else it reads texts.

    Of an encoder and decoder that is the encoder.

    Args:
        model: as transformers' ``AutoModel`` builds it.
        tower: ``"text"``, ``"vision"`` or how else the config calls it; None is the only one.
        name: for messages.

    Raises:
        ValueError: there are several and none was chosen, none of this name, or one that reads neither.
    """
    if tower is None and has_decoder(model):
        model = model.get_encoder()
    found = _towers(model)
    if tower is None and len(found) > 1:
        raise ValueError(f"{name} has several networks: choose {' or '.join(f'tower={kind!r}' for kind in found)}")
    if tower is not None:
        if tower not in found:
            there = f"has {' and '.join(found)}" if found else "is a single network: leave tower out"
            raise ValueError(f"tower={tower!r}: {name} {there}")
        places = getattr(model, "hf_device_map", None)
        model = found[tower]
        if places is not None:
            model.hf_device_map = places
    kind = getattr(model, "main_input_name", "")
    if tower == "audio" or (tower is None and kind in _AUDIO):
        raise ValueError(f"{name} reads audio; mtl reads images and texts")
    images = kind == "pixel_values" if tower is None else tower in IMAGES
    if tower is None and not images and kind != "input_ids":
        raise ValueError(f"{name} reads {kind}; mtl reads images and texts")
    return model, images


def has_decoder(model: Any) -> bool:
    """Whether a network has an encoder and a decoder; the config of an encoder stored alone may deny it."""
    parts = dict(model.named_children())
    both = {"encoder", "decoder"} <= parts.keys() and isinstance(parts["decoder"], transformers.PreTrainedModel)
    return both or model.config.is_encoder_decoder


def _towers(model: Any) -> dict[str, nn.Module]:
    """The parts that have a config of their own, by its name there: ``text_config`` makes ``"text"``."""
    found: dict[str, nn.Module] = {}
    for key in getattr(model.config, "sub_configs", {}):
        kind, config = key.removesuffix("_config"), getattr(model.config, key, None)
        parts = (m for path, m in model.named_modules() if path and getattr(m, "config", None) is config)
        part = next(parts, None) if config is not None else None
        if kind in ("text", "audio", *IMAGES) and part is not None:
            found[kind] = _without_head(part)
    return found


def _without_head(part: nn.Module) -> nn.Module:
    return part.base_model if isinstance(part, transformers.PreTrainedModel) and "For" in type(part).__name__ else part
