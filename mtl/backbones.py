"""Frozen timm and transformers networks behind one call: inputs with a task axis in, features with a task axis out."""

from __future__ import annotations

import abc
import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
import transformers
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_state_dict
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.modulation import Modulation, Modulator, SiteKind, find_sites, uncompiled

EMBEDDED = "mtl/glyphs"


class AbstractAdapter(abc.ABC):
    """What differs between kinds of networks: how to call them, how to pool, how raw items become tensors."""

    @abc.abstractmethod
    def features(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Features ``(n, D)`` of ``n`` examples, ``(n, ...)`` or tokens by name, each ``(n, length)``."""

    @abc.abstractmethod
    def example(self, n: int) -> Inputs:
        """``n`` different random examples, the same ones every time."""

    @abc.abstractmethod
    def preprocess(self, items: Sequence[Any]) -> Inputs:
        """Tensors ``(n, ...)`` of ``n`` raw items, the way the network was trained to see them."""


class Backbone(nn.Module):
    """A frozen network that reads features under a per-task modulation. Always in eval mode, never trained.

    Args:
        model: the network; its parameters stop requiring gradients, and it gets a forward hook per site.
        adapter: how to feed it.
        name: for messages and checkpoints.
        sites: which layers are modulated, see :func:`mtl.modulation.find_sites`.
        last_k: only the last ``k`` blocks.
        load_args: what :func:`load_backbone` was called with.

    Attributes:
        width: features per example, ``D``.
        modulation_width: channels over all sites, ``P``.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: AbstractAdapter,
        *,
        name: str,
        sites: SiteKind = "norm",
        last_k: int | None = None,
        load_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = uncompiled(model).requires_grad_(False).eval()
        self.adapter = adapter
        self.name = name
        self.load_args = load_args
        inputs = self.example_inputs(2)
        self.sites = find_sites(self.model, sites, last_k, example_inputs=inputs)
        self.modulator = Modulator(self.model, self.sites)
        self.modulation_width = self.modulator.width
        with torch.no_grad():
            self.width = self._checked(self.features(inputs)).shape[-1]
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: batch statistics and dropout are frozen too, whatever a parent module asks for."""
        del mode
        return super().train(False)

    def forward(self, inputs: Inputs, modulation: Modulation | None = None) -> Tensor:
        """Features of every task's examples under that task's modulation, all tasks in one batch.

        Args:
            inputs: ``(tasks, n, ...)``, or tokens by name, each ``(tasks, n, length)``.
            modulation: ``(tasks, P)`` scale and shift; None is the plain network.

        Returns:
            ``(tasks, n, D)``.

        Raises:
            ValueError: tasks or widths of inputs and modulation differ.
        """
        flat, tasks = self._flatten(inputs)
        if modulation is not None and modulation.tasks != tasks:
            raise ValueError(
                f"inputs hold {tasks} tasks but the modulation {modulation.tasks}; "
                "expand a shared modulation to one row per task"
            )
        with self.modulator.modulating(modulation):
            return self.features(flat).unflatten(0, (tasks, -1))

    @torch.no_grad()
    def observe(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """What the plain network makes of the examples, without a graph.

        Returns:
            Features ``(tasks, n, D)``, and for each site its activation averaged over positions ``(tasks, n, C)`` in
            float32. Padding tokens are left out.
        """
        flat, tasks = self._flatten(inputs)
        mask = flat.get("attention_mask") if isinstance(flat, dict) else None
        with self.modulator.recording(_count(flat), mask) as means:
            features = self.features(flat)
        return features.unflatten(0, (tasks, -1)), [m.unflatten(0, (tasks, -1)) for m in means]

    def features(self, inputs: Inputs) -> Tensor:
        """Features ``(n, D)`` of inputs without a task axis, under the modulation in force."""
        return self.adapter.features(self.model, self._cast(inputs))

    def preprocess(self, items: Sequence[Any]) -> Inputs:
        """PIL images to ``(n, C, H, W)``, or strings to token tensors ``(n, L)``; on the CPU."""
        return self.adapter.preprocess(items)

    def example_inputs(self, n: int) -> Inputs:
        """``n`` random examples of the shape the network takes, on its device; the same ones every time."""
        return self._cast(self.adapter.example(n))

    def fingerprint(self) -> str:
        """A short hash of parameter names, shapes and some values; the same on every device and in bfloat16."""
        digest = hashlib.sha256()
        named = sorted(self.model.named_parameters())
        for i, (name, value) in enumerate(named):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            if i % max(1, len(named) // 8) == 0:
                part = value.detach().flatten()[:1024].to("cpu", torch.bfloat16)
                digest.update(part.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def spec(self) -> dict[str, Any]:
        """JSON-able: ``load_backbone(**spec["load"])`` builds this backbone again, ``fingerprint`` says whether it did.

        Raises:
            ValueError: built without :func:`load_backbone`, or with an argument that JSON cannot hold.
        """
        if self.load_args is None:
            raise ValueError(f"{self.name} was not made by load_backbone, so nothing says how to load it again")
        try:
            load = json.loads(json.dumps(self.load_args))
        except TypeError as e:
            raise ValueError(f"the arguments of {self.name} do not fit into JSON ({e}); pass dtypes as strings") from e
        return {
            "load": load,
            "width": self.width,
            "modulation_width": self.modulation_width,
            "fingerprint": self.fingerprint(),
        }

    def _flatten(self, inputs: Inputs) -> tuple[Inputs, int]:
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        if first.dim() < 3:
            raise ValueError(f"inputs of shape {tuple(first.shape)}: expected (tasks, n, ...); add the task axis")
        flat = {k: v.flatten(0, 1) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.flatten(0, 1)
        return flat, first.shape[0]

    def _cast(self, inputs: Inputs) -> Inputs:
        """To the network's device, and floats to its dtype: a network stored in bfloat16 takes no float32 image."""
        like = next(self.model.parameters())
        if isinstance(inputs, dict):
            return {k: v.to(like.device) for k, v in inputs.items()}
        return inputs.to(like)

    def _checked(self, features: Tensor) -> Tensor:
        if features.dim() != 2:
            raise ValueError(
                f"{self.name} gives features of shape {tuple(features.shape)}: expected (n, D); choose a pooling"
            )
        return features


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- loading ---------------------------------------------------------------------------------------------------------


def load_backbone(
    name: str | Path,
    *,
    sites: SiteKind = "norm",
    last_k: int | None = None,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    pooling: str | None = None,
    seed: int = 0,
    **model_args: Any,
) -> Backbone:
    """A frozen network by name.

    Args:
        name: ``"mtl/glyphs"`` for the small network that comes with the package (32 px, grey);
            ``"timm/<name>"`` or a timm name, with or without its tag (``"vit_small_patch16_224.dino"``);
            ``"hf/<id>"``, any other id with a slash, or a local folder with a ``config.json``.
        sites: ``"norm"`` or ``"ssf"``, see :func:`mtl.modulation.find_sites`.
        last_k: modulate the last ``k`` blocks only.
        pretrained: False gives random weights, the same ones for the same ``seed``.
        checkpoint: a local ``.safetensors`` or ``.pth`` file for a timm network.
        pooling: ``"mean"``, ``"cls"`` or ``"last"``. Default: timm's own; mean for encoders, the last token for causal
            models.
        model_args: passed on, such as ``in_chans``, ``img_size``, ``dtype="bfloat16"`` (or ``torch.bfloat16``).

    Raises:
        ValueError: a name, an argument or a checkpoint that does not fit.
        OSError: the weights are neither here nor reachable.
    """
    if "dtype" in model_args:
        model_args["dtype"] = _dtype_name(model_args["dtype"], stored=pretrained and not _is_timm(name))
    load_args: dict[str, Any] = {"name": str(name), "sites": sites, "last_k": last_k, "pretrained": pretrained}
    load_args |= {"checkpoint": checkpoint and str(checkpoint), "pooling": pooling, "seed": seed, **model_args}
    load = _load_embedded if str(name) == EMBEDDED else _load_timm if _is_timm(name) else _load_hf
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, adapter = load(str(name), pretrained, checkpoint, pooling, model_args)
    return Backbone(model, adapter, name=str(name), sites=sites, last_k=last_k, load_args=load_args)


def _is_timm(name: str | Path) -> bool:
    config = Path(name) / "config.json"
    if config.is_file():
        return "architecture" in json.loads(config.read_text())  # what timm's save_for_hf writes
    return isinstance(name, str) and ("/" not in name or name.startswith("timm/"))


def _dtype_name(dtype: Any, stored: bool) -> Any:
    """``"bfloat16"`` for that and for ``torch.bfloat16``: a name fits into JSON.

    Args:
        stored: weights are read by transformers, which takes ``"auto"`` and a dtype per part of the network too.
    """
    if dtype is None or (stored and (dtype == "auto" or isinstance(dtype, dict))):
        return dtype
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r}: expected a floating-point torch.dtype or its name, such as 'float32' or 'bfloat16'"
        )
    return name


def _unreachable(name: str, way_out: str) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    tried = (
        "HF_HUB_OFFLINE is set, so only the cache was searched" if offline else "neither the hub nor the cache has it"
    )
    hint = "" if offline else "; HF_HUB_OFFLINE=1 makes this fail at once"
    return f"no weights for {name!r}: {tried}. {way_out}, or pretrained=False for random weights{hint}"


# --- timm ------------------------------------------------------------------------------------------------------------

_TIMM_POOLING = {"mean": "avg", "cls": "token"}


class TimmImages(AbstractAdapter):
    """Images for a timm network made with ``num_classes=0``.

    Args:
        config: timm's data config: input_size, mean, std, interpolation, crop_pct, crop_mode.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def features(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return model(inputs)

    def example(self, n: int) -> Tensor:
        return _noise(n, *self.config["input_size"])

    def preprocess(self, items: Sequence[Image.Image]) -> Tensor:
        mode = {1: "L", 3: "RGB"}.get(self.config["input_size"][0])
        if mode is None:
            channels = self.config["input_size"][0]
            raise ValueError(f"the network takes {channels} channels, an image has 1 or 3; pass tensors instead")
        return torch.stack([self._transform(item.convert(mode)) for item in items])

    @cached_property
    def _transform(self) -> Any:
        return create_transform(**self.config, is_training=False)


def _load_timm(
    name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    if not Path(name).is_dir():
        name = name.removeprefix("timm/")
        _check_timm_name(name, pretrained and checkpoint is None)
    pool = {} if pooling is None else {"global_pool": _TIMM_POOLING.get(pooling, pooling)}
    if args.get("dtype") is not None:
        args = args | {"dtype": getattr(torch, args["dtype"])}  # timm hands it to torch, which takes no names
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    try:
        model = timm.create_model(source, pretrained and checkpoint is None, num_classes=0, **pool, **args)
    except TypeError as e:
        raise ValueError(
            f"{name} does not take these arguments: {e}; a convolutional network has no img_size, "
            "set its size with pretrained_cfg_overlay={'input_size': (3, 64, 64)}"
        ) from e
    except OSError as e:
        raise OSError(_unreachable(name, "Point checkpoint= at a local .safetensors or .pth file")) from e
    if checkpoint is not None:
        _load_timm_checkpoint(model, Path(checkpoint))
    return model, TimmImages(_timm_data_config(model, args))


def _load_embedded(
    name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    """The shipped network: a timm one whose weights and arguments lie in the package, so that no path is saved."""
    assets = Path(__file__).parent / "data" / "assets"
    info = json.loads((assets / "glyphs_backbone.json").read_text())
    known = {k: v for k, v in info["kwargs"].items() if k != "num_classes"}
    overlay = {"input_size": tuple(info["input_size"]), "mean": (info["mean"],), "std": (info["std"],), "crop_pct": 1.0}
    weights = checkpoint or (assets / "glyphs_backbone.safetensors" if pretrained else None)
    return _load_timm(info["model"], False, weights, pooling, known | {"pretrained_cfg_overlay": overlay} | args)


def _check_timm_name(name: str, pretrained: bool) -> None:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), 3) or ["none; see timm.list_models()"]
        raise ValueError(
            f"unknown timm model {name!r}; nearest names: {', '.join(near)}. For transformers write hf/<id>"
        )
    known = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in known:
        raise ValueError(f"{base} has no weights tagged {tag!r}; its tags: {', '.join(known) or 'none'}")
    if pretrained and not known:
        raise ValueError(f"timm has no weights for {base}; give checkpoint=, or pretrained=False for random weights")


def _timm_data_config(model: nn.Module, args: dict[str, Any]) -> dict[str, Any]:
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


def _load_timm_checkpoint(model: nn.Module, path: Path) -> None:
    """timm's loader, strict: its own with ``num_classes=0`` ignores every key that does not match."""
    if not path.is_file():
        raise ValueError(f"checkpoint={str(path)!r} is not a file")
    state = load_state_dict(str(path))
    head = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path.name} does not fit {type(model).__name__}: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)}), other shapes {sorted(shapes)[:3]} ({len(shapes)}); "
            "pass the model_args it was trained with, such as img_size or in_chans"
        )
    model.load_state_dict(state)


# --- transformers ----------------------------------------------------------------------------------------------------


def _load_hf(
    name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
) -> tuple[nn.Module, AbstractAdapter]:
    if checkpoint is not None:
        raise ValueError(f"checkpoint={str(checkpoint)!r} is for timm; give the transformers folder itself as the name")
    source = name.removeprefix("hf/")
    try:
        model = _hf_model(source, pretrained, args)
    except TypeError as e:
        raise ValueError(f"{name} does not take these arguments: {e}") from e
    except OSError as e:
        raise OSError(_unreachable(name, "Name a local folder with config.json and weights")) from e
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if model.main_input_name == "pixel_values":
        return model, HFImages(model, source, pooling or "mean")
    return model, HFText(model, source, pooling)


def _hf_model(source: str, pretrained: bool, args: dict[str, Any]) -> Any:
    """The bare network; attention is transformers' own choice, sdpa where the model supports it."""
    if not pretrained:
        config, rest = cast(
            tuple[Any, dict[str, Any]],
            transformers.AutoConfig.from_pretrained(source, return_unused_kwargs=True, **args),
        )
        return transformers.AutoModel.from_config(config, **rest)
    model, info = transformers.AutoModel.from_pretrained(source, output_loading_info=True, **args)
    # transformers fills missing weights with random ones and goes on; poolers are not used here.
    if missing := sorted(k for k in info["missing_keys"] if "pooler" not in k.split(".")):
        raise ValueError(f"{source} lacks weights for {missing[:3]} ({len(missing)} in all); is it the right folder?")
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

    def __init__(self, model: Any, source: str, pooling: str) -> None:
        _check_pooling(pooling, ("mean", "cls"))
        self.source, self.pooling = source, pooling
        size = getattr(model.config, "image_size", 224)
        size = [size, size] if isinstance(size, int) else list(size)
        self.shape = (getattr(model.config, "num_channels", 3), *size)

    def features(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return _pool(model(inputs).last_hidden_state, None, self.pooling)

    def example(self, n: int) -> Tensor:
        return _noise(n, *self.shape)

    def preprocess(self, items: Sequence[Image.Image]) -> Tensor:
        mode = "L" if self.shape[0] == 1 else "RGB"
        return self._processor([item.convert(mode) for item in items], return_tensors="pt")["pixel_values"]

    @cached_property
    def _processor(self) -> Any:
        try:
            return transformers.AutoImageProcessor.from_pretrained(self.source)
        except (OSError, ValueError) as e:
            raise ValueError(f"{self.source} has no usable preprocessor_config.json; pass pixel tensors instead") from e


class HFText(AbstractAdapter):
    """Tokens for a transformers text network.

    Args:
        pooling: None is the last token for a causal network, else the mean over tokens.
    """

    def __init__(self, model: Any, source: str, pooling: str | None) -> None:
        self.source = source
        self.vocabulary = int(model.config.vocab_size)
        positions = getattr(model.config, "max_position_embeddings", None)
        self.max_length = int(positions) if isinstance(positions, int) and positions > 0 else None
        # Decoders build a cache that nobody reads, unless told not to.
        self.extra = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
        self.pooling = pooling or ("last" if self._is_causal(model) else "mean")
        _check_pooling(self.pooling, ("mean", "cls", "last"))

    def features(self, model: nn.Module, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, dict):
            raise ValueError("a text network takes token tensors by name: {'input_ids': ..., 'attention_mask': ...}")
        hidden = model(**inputs, **self.extra).last_hidden_state
        return _pool(hidden, inputs.get("attention_mask"), self.pooling)

    def example(self, n: int) -> dict[str, Tensor]:
        length = min(8, self.max_length or 8)
        ids = torch.randint(self.vocabulary, (n, length), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def preprocess(self, items: Sequence[str]) -> dict[str, Tensor]:
        longest = min(self.max_length or 10**9, self._tokenizer.model_max_length)
        limit = {"truncation": True, "max_length": longest} if longest < 10**9 else {}
        tokens = self._tokenizer(list(items), padding=True, return_tensors="pt", **limit)
        top = int(tokens["input_ids"].max())
        if top >= self.vocabulary:
            raise ValueError(f"token {top} is beyond the {self.vocabulary} that {self.source} embeds: wrong tokenizer")
        return dict(tokens)

    @torch.no_grad()
    def _is_causal(self, model: nn.Module) -> bool:
        """Whether the first token is blind to the last: asking the network is surer than reading its config."""
        model.eval()
        one, other = (self.example(1) for _ in range(2))
        other["input_ids"][0, -1] = (other["input_ids"][0, -1] + 1) % self.vocabulary
        first, second = (model(**x, **self.extra).last_hidden_state[0, 0] for x in (one, other))
        return torch.allclose(first, second, rtol=1e-5, atol=1e-6)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.source)
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
        return tokenizer
