"""Networks of transformers: images, and text with its pooling over tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from mtl.items import Reads, as_images, as_texts
from mtl.networks.backbones.adapter import AbstractAdapter, noise, unavailable_message
from mtl.networks.backbones.families import FAMILIES, AbstractFamily
from mtl.networks.readout import Positions

# Shows whether a tokenizer folds case and accents, and how it divides words.
PROBE = "Hello, WORLD!  Na\u00efve caf\u00e9\n3.50 \u20ac, don't; \u4f60\u597d"
UNLIMITED = 10**9  # tokens; tokenizers without a limit name a larger number


SAVED = frozenset({"max_length", "dtype", "revision", "attn_implementation"})
"""Arguments that a saved generator may give."""


class TransformersFamily(AbstractFamily):
    """transformers: ``"hf/<id>"``, any other id with a slash, or a folder with a ``config.json``."""

    loads_in_place: ClassVar[bool] = True
    saved_arguments: ClassVar[frozenset[str]] = SAVED

    def matches(self, name: str) -> bool:
        return "/" in name or (Path(name) / "config.json").is_file()

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """A network without its head, of an encoder and decoder the encoder; see :class:`AbstractFamily`."""
        if checkpoint is not None:
            raise ValueError(
                f"checkpoint={str(checkpoint)!r} is for timm; give the transformers folder itself as the name"
            )
        family = name.partition("/")[0]
        way_out = (
            "Name a local folder with config.json and weights, or register the family of a network of your own with "
            f"{FAMILIES.name}.register({family!r}, YourFamily)"
        )
        return load_from(Source(name.removeprefix("hf/")), name, pretrained, pooling, args, way_out)


@dataclass(frozen=True)
class Source:
    """Where transformers finds a network.

    Args:
        place: a folder, or an id of the hub.
        gguf_file: the file in that folder that holds network and tokenizer.
        config: of random weights; None is the one in ``place``.
        trust_remote_code: whether Python files in ``place`` may be run. Transformers asks on the terminal when it is
            told nothing, and so it is told.
    """

    place: str
    gguf_file: str | None = None
    config: PretrainedConfig | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of every ``from_pretrained``."""
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def load_from(
    source: Source, name: str, pretrained: bool, pooling: str | None, args: dict[str, Any], way_out: str
) -> tuple[nn.Module, AbstractAdapter]:
    """A network of transformers; see :meth:`AbstractFamily.load`.

    Args:
        way_out: what to do where the weights are not to be had, for the message.
    """
    args = dict(args)
    max_length = args.pop("max_length", None)
    source = replace(source, trust_remote_code=args.pop("trust_remote_code", False))
    try:
        model = _bare_model(source, pretrained, args)
    except TypeError as e:
        raise ValueError(f"{name} does not take these arguments: {e}") from e
    except OSError as e:
        raise OSError(unavailable_message(name, way_out)) from e
    except ValueError as e:
        if "trust_remote_code" not in str(e):
            raise
        raise ValueError(
            f"{name} comes with Python code of its own, which is not run; read it, and pass trust_remote_code=True to "
            "load_backbone or from_pretrained if you trust its author"
        ) from e
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if model.main_input_name == "pixel_values":
        if max_length is not None:
            raise ValueError(f"max_length={max_length} is for texts; {name} takes images")
        return model, HFImages(model, source.place, pooling or "mean", source.trust_remote_code)
    return model, HFText(model, source.place, pooling, max_length, source.options)


def _bare_model(source: Source, pretrained: bool, args: dict[str, Any]) -> Any:
    """The bare network; attention is transformers' own choice, sdpa where the model supports it."""
    if not pretrained and source.config is not None:
        return transformers.AutoModel.from_config(source.config, **args)
    if not pretrained:
        config, rest = cast(
            tuple[Any, dict[str, Any]],
            transformers.AutoConfig.from_pretrained(source.place, return_unused_kwargs=True, **source.options, **args),
        )
        return transformers.AutoModel.from_config(config, trust_remote_code=source.trust_remote_code, **rest)
    model, info = transformers.AutoModel.from_pretrained(
        source.place, output_loading_info=True, **source.options, **args
    )
    # transformers fills missing weights with random ones and goes on; poolers are not used here.
    if missing := sorted(k for k in info["missing_keys"] if "pooler" not in k.split(".")):
        raise ValueError(
            f"{source.place} lacks weights for {missing[:3]} ({len(missing)} in all); is it the right folder?"
        )
    return model


def _pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """``(n, length, D)`` or ``(n, D, H, W)`` to ``(n, D)``."""
    if hidden.dim() == 4:
        return hidden.mean((2, 3))
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask
    if pooling == "mean":
        weights = (mask / mask.sum(1, keepdim=True).clamp_min(1)).to(hidden.dtype)
        return torch.einsum("nl,nld->nd", weights, hidden)
    if pooling == "cls":
        return hidden[:, 0]
    # The last token that is not padding, whichever side the padding is on.
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _check_pooling(pooling: str, known: tuple[str, ...]) -> None:
    if pooling not in known:
        raise ValueError(f"pooling={pooling!r}: expected one of {', '.join(known)}")


class HFImages(AbstractAdapter):
    """Images for a transformers vision network."""

    reads: ClassVar[Reads] = "images"

    def __init__(self, model: Any, source: str, pooling: str, trust_remote_code: bool = False) -> None:
        _check_pooling(pooling, ("mean", "cls"))
        self.source, self.pooling, self.trust_remote_code = source, pooling, trust_remote_code
        size = getattr(model.config, "image_size", 224)
        size = [size, size] if isinstance(size, int) else list(size)
        self.shape = (getattr(model.config, "num_channels", 3), *size)

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return _pool(model(inputs).last_hidden_state, None, self.pooling)

    def positions(self, model: Any) -> Positions:
        """Class token, distillation token and registers, as the embeddings have them as parameters."""
        names = [n.rpartition(".")[2] for n, _ in model.named_parameters()]
        tokens = [n for n in names if n in ("cls_token", "distillation_token")]
        registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
        return Positions(len(tokens) + registers, has_class_token="cls_token" in tokens)

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        return {"pooling": self.pooling}

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
            return transformers.AutoImageProcessor.from_pretrained(
                self.source, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as e:
            raise ValueError(f"{self.source} has no usable preprocessor_config.json; pass pixel tensors instead") from e


class HFText(AbstractAdapter):
    """Tokens for a transformers text network.

    Args:
        pooling: None is the last token for a causal network, else the mean over tokens.
        max_length: tokens that are kept of a text; None is as many as the network and its tokenizer can take.
        tokenizer_args: of ``AutoTokenizer.from_pretrained``.

    Raises:
        ValueError: an unknown pooling, or a length that the network cannot take.
    """

    reads: ClassVar[Reads] = "texts"

    def __init__(
        self,
        model: Any,
        source: str,
        pooling: str | None,
        max_length: int | None = None,
        tokenizer_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.tokenizer_args = dict(tokenizer_args or {})
        self.vocabulary = int(model.config.vocab_size)
        positions = getattr(model.config, "max_position_embeddings", None)
        self.max_length = int(positions) if isinstance(positions, int) and positions > 0 else None
        if max_length is not None:
            if not 2 <= max_length <= (self.max_length or max_length):
                raise ValueError(
                    f"max_length={max_length}: expected 2 to {self.max_length or 'any number of'} tokens, "
                    f"which is what {source} can take"
                )
            self.max_length = max_length
        # Decoders build a cache by default, and nothing reads it here.
        self.extra = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
        self.pooling = pooling or ("last" if self._is_causal(model) else "mean")
        _check_pooling(self.pooling, ("mean", "cls", "last"))

    def features(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if not isinstance(inputs, dict):
            raise ValueError("a text network takes token tensors by name: {'input_ids': ..., 'attention_mask': ...}")
        hidden = model(**inputs, **self.extra).last_hidden_state
        return _pool(hidden, inputs.get("attention_mask"), self.pooling)

    def positions(self, model: Any) -> Positions:
        causal = self._is_causal(model)
        # The tokenizers of the T5 family put nothing before a text.
        return Positions(has_class_token=not causal and "t5" not in model.config.model_type, causal=causal)

    def reading(self, model: nn.Module) -> Mapping[str, Any]:
        return {"pooling": self.pooling, "max_length": self.max_length}

    def example(self, n: int) -> dict[str, Tensor]:
        length = min(8, self.max_length or 8)
        ids = torch.randint(self.vocabulary, (n, length), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def preprocess(self, items: Sequence[str]) -> dict[str, Tensor]:
        texts = as_texts(items)
        limited = self.tokenizer.model_max_length < UNLIMITED
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt", truncation=limited)
        top = int(tokens["input_ids"].max())
        if top >= self.vocabulary:
            raise ValueError(f"token {top} is beyond the {self.vocabulary} that {self.source} embeds: wrong tokenizer")
        return dict(tokens)

    def preprocessing(self) -> Mapping[str, Any]:
        tokenizer = self.tokenizer
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        return {
            "tokens": len(tokenizer),
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
            "probe": tokenizer(PROBE, truncation=True)["input_ids"],
            "max_length": tokenizer.model_max_length,
        }

    @torch.no_grad()
    def _is_causal(self, model: Any) -> bool:
        """Whether the first token is blind to the last: asking the network is surer than reading its config."""
        model.eval()
        one, other = (self.example(1) for _ in range(2))
        other["input_ids"][0, -1] = (other["input_ids"][0, -1] + 1) % self.vocabulary
        first, second = (model(**x, **self.extra).last_hidden_state[0, 0] for x in (one, other))
        return torch.allclose(first, second, rtol=1e-5, atol=1e-6)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that lies with the weights; a ValueError says that there is none."""
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, **self.tokenizer_args)
        except (OSError, ValueError) as e:
            raise ValueError(f"{self.source} has no usable tokenizer; pass input_ids and attention_mask instead") from e
        # Without tokenizer files AutoTokenizer makes up a vocabulary of a few special tokens and says nothing.
        if len(tokenizer) < self.vocabulary // 2:
            raise ValueError(
                f"the tokenizer of {self.source} knows {len(tokenizer)} tokens, the network {self.vocabulary}: "
                "its tokenizer files are missing; copy them there, or pass input_ids and attention_mask instead"
            )
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "right"  # absolute positions count from the left
        # An exported tokenizer cuts where this one does.
        tokenizer.model_max_length = min(self.max_length or UNLIMITED, tokenizer.model_max_length)
        return tokenizer
