"""Images for networks of transformers: which positions are patches, and pooling over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from mtl.items import Reads, as_images
from mtl.networks.backbones.adapter import AbstractAdapter, check_pooling, noise
from mtl.networks.backbones.hub import asking_the_hub
from mtl.networks.backbones.transformers_texts import pool_tokens
from mtl.networks.readout import Positions

_CLASS_TOKENS = ("cls_token", "class_embedding")
_BEFORE_PATCHES = (*_CLASS_TOKENS, "distillation_token", "register_tokens")
_AFTER_PATCHES = ("detection_tokens",)
_POOLED_FIRST = ("dinov3_convnext",)  # puts its pooled vector, which is no parameter, before the patches
_MASKED_AT_RANDOM = ("vit_mae",)


class HFImages(AbstractAdapter):
    """Images for a transformers vision network.

    Args:
        pooling: ``"mean"`` over patches; ``"cls"``, the class token; ``"mean-all"``, over patches, class token,
            registers and all other positions.
        processor_args: of ``AutoImageProcessor.from_pretrained``.

    Raises:
        ValueError: another pooling, or ``"cls"`` for a network without a class token.
    """

    reads: ClassVar[Reads] = "images"

    def __init__(self, model: Any, source: str, pooling: str, processor_args: Mapping[str, Any] | None = None) -> None:
        check_pooling(pooling, ("mean", "cls", "mean-all"))
        self.source, self.pooling = source, pooling
        self.processor_args = dict(processor_args or {})
        size = getattr(model.config, "image_size", 224)
        size = [size, size] if isinstance(size, int) else list(size)
        self.shape = (getattr(model.config, "num_channels", 3), *size)
        tokens = _tokens(model)
        self.prefix = sum(count for name, count in tokens.items() if name in _BEFORE_PATCHES)
        self.suffix = sum(count for name, count in tokens.items() if name in _AFTER_PATCHES)
        self.has_class_token = any(name in _CLASS_TOKENS for name in tokens)
        if pooling == "cls" and not self.has_class_token:
            raise ValueError(f"pooling='cls': {source} has no class token; pooling='mean' is over its patches")
        if model.config.model_type in _MASKED_AT_RANDOM:
            model.config.mask_ratio = 0.0  # or three patches of four, other ones at every call, were not seen
            model.embeddings.register_forward_pre_hook(_keep_order, with_kwargs=True)

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        hidden = model(inputs).last_hidden_state
        if hidden.dim() == 4:
            return _as_map(hidden, inputs.shape[2] / inputs.shape[3]).mean((2, 3))
        if self.pooling == "mean":
            hidden = hidden[:, self.prefix : hidden.shape[1] - self.suffix]
        return pool_tokens(hidden, None, "cls" if self.pooling == "cls" else "mean")

    def positions(self, model: Any) -> Positions:
        """Class token, distillation token and registers, as the embeddings have them as parameters."""
        del model
        return Positions(self.prefix, has_class_token=self.has_class_token)

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        return {"pooling": self.pooling}

    def former_pooling(self, model: nn.Module, pooling: str | None) -> str:
        del model
        if pooling == "cls":
            return pooling
        return "mean-all" if self.prefix + self.suffix else self.pooling

    def formula(self) -> str:
        """What features are, for people who compute them without mtl."""
        if self.pooling == "cls":
            return "last_hidden_state[:, 0]"
        patches = f"[:, {self.prefix}:{-self.suffix or ''}]" if self.pooling == "mean" else ""
        return f"mean of last_hidden_state{patches} over its positions"

    def example(self, n: int) -> Tensor:
        return noise(n, *self.shape)

    def preprocess(self, items: Sequence[Any]) -> Tensor:
        images = as_images(items, "L" if self.shape[0] == 1 else "RGB")
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def preprocessing(self) -> Mapping[str, Any]:
        described = self.processor.to_dict()
        return {k: v for k, v in described.items() if not k.endswith(("_type", "_class"))}

    @cached_property
    def processor(self) -> Any:
        """The image processor that lies with the weights; a ValueError says that there is none."""
        try:
            with asking_the_hub(self.source):
                return transformers.AutoImageProcessor.from_pretrained(self.source, **self.processor_args)
        except (OSError, ValueError) as e:
            raise ValueError(f"{self.source} has no usable preprocessor_config.json; pass pixel tensors instead") from e


def _tokens(model: Any) -> dict[str, int]:
    """How many positions of each kind the embeddings add to the patches."""
    if model.config.model_type in _POOLED_FIRST:
        return {"cls_token": 1}
    named = [(name.rpartition("."), value) for name, value in model.named_parameters()]
    own = {leaf: value.shape[-2] if value.dim() > 1 else 1 for (path, _, leaf), value in named if "embeddings" in path}
    return {leaf: count for leaf, count in own.items() if leaf in (*_BEFORE_PATCHES, *_AFTER_PATCHES)}


def _keep_order(embeddings: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Patches are sorted by noise before some are left out: with none left out, rising noise keeps them in order."""
    rising = torch.arange(embeddings.patch_embeddings.num_patches, device=args[0].device)
    return args, {**kwargs, "noise": rising.expand(len(args[0]), -1)}


def _as_map(hidden: Tensor, aspect: float) -> Tensor:
    """``(n, C, h, w)`` of that or of ``(n, h, w, C)``: whichever two axes have the aspect of the image."""
    _, a, b, c = hidden.shape
    first, last = abs(b / c - aspect), abs(a / b - aspect)
    return hidden if first <= last else hidden.movedim(-1, 1)
