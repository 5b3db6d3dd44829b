"""Networks of timm, and the one that comes with this package, which is one of them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn

from mtl.items import Mode, Reads, as_images
from mtl.networks.backbones.adapter import AbstractAdapter, noise
from mtl.networks.backbones.families import AbstractFamily
from mtl.networks.backbones.hub import asking_the_hub, unavailable_message
from mtl.networks.backbones.timm_checkpoints import load_from_file
from mtl.networks.readout import Positions
from mtl.tools.json_files import read_json

EMBEDDED = "mtl/glyphs"
_ASSETS = Path(__file__).parents[2] / "data" / "embedded" / "assets"
EMBEDDED_WEIGHTS = _ASSETS / "glyphs_backbone.safetensors"  # half precision, plain timm names
TIMM_POOLING = {"mean": "avg", "cls": "token"}


class TimmImages(AbstractAdapter):
    """Images for a timm network made with ``num_classes=0``.

    Args:
        config: timm's data config: input_size, mean, std, interpolation, crop_pct, crop_mode.
        built_for_size: False when timm takes no ``img_size`` for the network, as for convolutional ones.
    """

    reads: ClassVar[Reads] = "images"

    def __init__(self, config: dict[str, Any], built_for_size: bool = True) -> None:
        self.config = config
        self.built_for_size = built_for_size

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs)

    def example(self, n: int) -> Tensor:
        return noise(n, *self.config["input_size"])

    def positions(self, model: nn.Module) -> Positions:
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return Positions(prefix, has_class_token=getattr(model, "cls_token", None) is not None)

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        pools = [module.pool_type for module in model.modules() if isinstance(module, SelectAdaptivePool2d)]
        own = getattr(model, "global_pool", None)  # a word in networks of tokens
        return {"pooling": own if isinstance(own, str) else pools[-1] if pools else None}

    def preprocess(self, items: Sequence[Any]) -> Tensor:
        modes: dict[int, Mode] = {1: "L", 3: "RGB"}
        mode = modes.get(self.config["input_size"][0])
        if mode is None:
            channels = self.config["input_size"][0]
            raise ValueError(f"the network takes {channels} channels, an image has 1 or 3; pass tensors instead")
        return torch.stack([self._transform(image) for image in as_images(items, mode)])

    def preprocessing(self) -> Mapping[str, Any]:
        return self.config

    @cached_property
    def _transform(self) -> Any:
        return create_transform(**self.config, is_training=False)


# fmt: off
SAVED = frozenset({
    "img_size", "in_chans", "dtype", "pretrained_cfg_overlay", "patch_size", "embed_dim", "embed_dims", "depth",
    "depths", "num_heads", "dims", "mlp_ratio", "mlp_ratios", "qkv_bias", "qk_norm", "init_values", "class_token",
    "reg_tokens", "no_embed_class", "global_pool", "pos_embed", "fc_norm", "pre_norm", "final_norm",
    "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "window_size", "output_stride", "drop_rate",
    "drop_path_rate", "layers", "channels", "base_width", "cardinality", "stem_width", "stem_type",
})
# fmt: on
"""Arguments that a saved generator may give: sizes, and names that timm looks up in its own tables."""


class TimmFamily(AbstractFamily):
    """timm: ``"timm/<name>"``, a bare name with or without its tag, or a folder that timm's ``save_for_hf`` wrote."""

    saved_arguments: ClassVar[frozenset[str]] = SAVED

    def matches(self, name: str) -> bool:
        config = Path(name) / "config.json"
        if config.is_file():
            return "architecture" in read_json(config)
        return "/" not in name or name.startswith("timm/")

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """A network made with ``num_classes=0``; see :class:`AbstractFamily`."""
        folder = (Path(name) / "config.json").is_file()  # and not just any folder that is called like a network
        if not folder:
            name = name.removeprefix("timm/")
            _check_name(name, pretrained and checkpoint is None)
        pool = {} if pooling is None else {"global_pool": TIMM_POOLING.get(pooling, pooling)}
        if args.get("dtype") is not None:
            args = args | {"dtype": getattr(torch, args["dtype"])}  # timm hands it to torch, which takes no names
        source = f"local-dir:{name}" if folder else name
        try:
            stored = pretrained and checkpoint is None
            with asking_the_hub(f"timm/{name}") if stored and not folder else nullcontext():
                model, built = _create(source, stored, {"num_classes": 0, **pool, **args})
        except AssertionError as e:
            if pooling is None:
                raise
            raise ValueError(f"pooling={pooling!r}: {name} does not have it ({e}); 'mean' or timm's own names") from e
        except TypeError as e:
            raise ValueError(f"{name} does not take these arguments: {e}") from e
        except OSError as e:
            raise OSError(unavailable_message(name, "Point checkpoint= at a local .safetensors or .pth file")) from e
        if checkpoint is not None:
            load_from_file(model, Path(checkpoint))
        return model, TimmImages(_data_config(model, args), "img_size" in built or "img_size" not in args)


class EmbeddedFamily(AbstractFamily):
    """The network that comes with the package, ``"mtl/glyphs"``: a timm one whose weights and arguments lie in it."""

    saved_arguments: ClassVar[frozenset[str]] = SAVED

    def matches(self, name: str) -> bool:
        return name == EMBEDDED

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """See :class:`AbstractFamily`. No path of the package is saved with it."""
        info = embedded_info()
        known = {k: v for k, v in info["kwargs"].items() if k != "num_classes"}
        size, mean, std = tuple(info["input_size"]), (info["mean"],), (info["std"],)
        overlay = {"pretrained_cfg_overlay": {"input_size": size, "mean": mean, "std": std, "crop_pct": 1.0}}
        weights = checkpoint or (EMBEDDED_WEIGHTS if pretrained else None)
        return TimmFamily().load(info["model"], False, weights, pooling, known | overlay | args)


def embedded_info() -> dict[str, Any]:
    """How the embedded network is built: timm ``model`` and ``kwargs``, ``input_size``, ``mean`` and ``std``."""
    return json.loads((_ASSETS / "glyphs_backbone.json").read_text())


def _create(source: str, pretrained: bool, args: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and the arguments that it took: one without ``img_size`` takes images of any size."""
    try:
        return timm.create_model(source, pretrained, **args), args
    except TypeError as e:
        if "img_size" not in args or "img_size" not in str(e):
            raise
    args = {k: v for k, v in args.items() if k != "img_size"}
    return timm.create_model(source, pretrained, **args), args


def _check_name(name: str, pretrained: bool) -> None:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ValueError(
            f"unknown timm model {name!r}; nearest names: {', '.join(_near(base))}. For transformers write hf/<id>, "
            "for a file of your own name its folder with a config.json"
        )
    known = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in known:
        raise ValueError(f"{base} has no weights tagged {tag!r}; its tags: {', '.join(known) or 'none'}")
    if pretrained and not known:
        raise ValueError(f"timm has no weights for {base}; give checkpoint=, or pretrained=False for random weights")


def _near(name: str) -> list[str]:
    """Names like this one, else names with its longest word in them."""
    if near := difflib.get_close_matches(name, timm.list_models(), 3):
        return near
    words = sorted((w for w in re.split(r"[^a-z0-9]+", name.lower()) if len(w) > 2), key=len, reverse=True)
    for word in words:
        if found := timm.list_models(f"*{word}*"):
            return [*found[:3], f'timm.list_models("*{word}*") has {len(found)}']
    return ['none; search with timm.list_models("*word*")']


def _data_config(model: nn.Module, args: dict[str, Any]) -> dict[str, Any]:
    """timm reports the size and channels of the weights; the network may have been built for others."""
    config = resolve_model_data_config(model)
    channels, *size = config["input_size"]
    built = args.get("img_size", size)
    size = (built, built) if isinstance(built, int) else tuple(built)
    channels = args.get("in_chans", channels)
    # timm sums an RGB kernel over its channels for a grey input, so the grey statistics are the means of the three.
    stats = {k: config[k] for k in ("mean", "std")}
    if len(config["mean"]) != channels:
        stats = {k: (sum(v) / len(v),) * channels for k, v in stats.items()}
    return {**config, "input_size": (channels, *size), **stats}
