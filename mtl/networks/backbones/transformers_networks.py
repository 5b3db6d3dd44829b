"""Networks of transformers, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import PretrainedConfig

from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.families import FAMILIES, AbstractFamily
from mtl.networks.backbones.hub import asking_the_hub, unavailable_message
from mtl.networks.backbones.loading_bars import loading_bars
from mtl.networks.backbones.sentence_modules import SentenceModules, sentence_modules
from mtl.networks.backbones.towers import choose_tower, has_decoder
from mtl.networks.backbones.transformers_images import HFImages
from mtl.networks.backbones.transformers_texts import HFText
from mtl.tools.progress import watched

SAVED = frozenset({"max_length", "tower", "dtype", "revision", "attn_implementation"})
"""Arguments that a saved generator may give."""
_HUB_ARGS = ("revision", "token", "cache_dir", "local_files_only")  # tokenizers and processors need them too


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
        place = name.removeprefix("hf/")
        if not (Path(place) / "config.json").is_file():
            _check_id(place, name)
        family = name.partition("/")[0]
        way_out = (
            "Name a local folder with config.json and weights, or register the family of a network of your own with "
            f"{FAMILIES.name}.register({family!r}, YourFamily)"
        )
        return load_from(Source(place), name, pretrained, pooling, args, way_out)


def _check_id(place: str, name: str) -> None:
    """Refuse what is neither a folder with a network nor could be an id of the hub."""
    if Path(place).is_dir() or place.startswith((".", "/", "~")):
        raise ValueError(f"{name} is no folder with a config.json; expected one, or an id of the hub: owner/name")
    try:
        validate_repo_id(place)
    except HFValidationError as e:
        raise ValueError(f"{name} is no folder, and no id of the hub ({e}); expected hf/owner/name") from e


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
    max_length, tower = args.pop("max_length", None), args.pop("tower", None)
    source = replace(source, trust_remote_code=args.pop("trust_remote_code", False))
    hub_args = {k: args[k] for k in _HUB_ARGS if k in args}
    try:
        with asking_the_hub(source.place), loading_bars(watched()):
            whole = _bare_model(source, name, pretrained, args)
            model, images = choose_tower(whole, tower, name)
            stored = pretrained or source.config is None or Path(source.place).is_dir()
            readable = stored and not images
            own = sentence_modules(source.place, name, pooling, hub_args) if readable else SentenceModules()
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
    if images:
        if max_length is not None:
            raise ValueError(f"max_length={max_length} is for texts; {name} takes images")
        return model, HFImages(model, source.place, pooling or "mean", source.options | hub_args)
    return model, HFText(model, source.place, pooling, max_length, source.options | hub_args, own)


def _bare_model(source: Source, name: str, pretrained: bool, args: dict[str, Any]) -> Any:
    """The bare network; attention is transformers' own choice, sdpa where the model supports it."""
    try:
        if not pretrained:
            return _random_model(source, args)
        model, info = transformers.AutoModel.from_pretrained(
            source.place, output_loading_info=True, **source.options, **args
        )
    except ValueError as e:
        if not str(e).startswith(("Unrecognized configuration class", "Unrecognized model", "The checkpoint you are")):
            raise
        raise ValueError(
            f"{name} is a kind of network that transformers' AutoModel does not build ({str(e)[:90]}...); of an "
            "encoder and decoder in one checkpoint, save the encoder to a folder of its own and name that"
        ) from e
    # transformers fills missing weights with random ones and goes on; poolers are not used here.
    unused = ("decoder.",) if has_decoder(model) else ()
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k.split(".") and not k.startswith(unused))
    if missing:
        raise ValueError(
            f"{source.place} lacks weights for {missing[:3]} ({len(missing)} in all); is it the right folder?"
        )
    return model


def _random_model(source: Source, args: dict[str, Any]) -> Any:
    if source.config is not None:
        return transformers.AutoModel.from_config(source.config, **args)
    config, rest = cast(
        tuple[Any, dict[str, Any]],
        transformers.AutoConfig.from_pretrained(source.place, return_unused_kwargs=True, **source.options, **args),
    )
    return transformers.AutoModel.from_config(config, trust_remote_code=source.trust_remote_code, **rest)
