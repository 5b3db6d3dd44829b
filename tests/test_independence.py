"""Features of an example depend on the example alone: networks where they do not are refused when they are loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import HF_IMAGES, NETWORKS, SIZES, load
from torch import Tensor, nn

import mtl
from mtl.networks import FAMILIES, AbstractAdapter, AbstractFamily

READ_PADDING = {
    "fnet": SIZES,
    "convbert": {**SIZES, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 2},
    "yoso": SIZES,
    "canine": {**SIZES, "num_hash_buckets": 20, "num_hash_functions": 2, "max_position_embeddings": 32},
}


def folder(where: Path, kind: str, config: dict[str, Any]) -> Path:
    (where / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return where


@pytest.mark.parametrize("name", READ_PADDING)
def test_networks_that_read_padding_are_refused(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"reads padding: beside a longer text.*choose a network that leaves padding"):
        mtl.load_backbone(folder(tmp_path, name, READ_PADDING[name]), pretrained=False)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_others_are_not(name: str, dtype: str | None, tmp_path: Path):
    assert load(name, tmp_path, **({} if dtype is None else {"dtype": dtype})).width > 0


def test_a_text_network_with_a_local_window_is_no_causal_one(tmp_path: Path):
    """The first of eight tokens is blind to the last here too."""
    config = {**SIZES, "attention_window": 4, "max_position_embeddings": 18, "pad_token_id": 1}
    backbone: Any = mtl.load_backbone(folder(tmp_path, "longformer", config), pretrained=False)
    assert backbone.adapter.pooling == "mean"


class Numbers(AbstractAdapter):
    """Vectors of four numbers."""

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs)

    def example(self, n: int) -> Tensor:
        return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))

    def preprocess(self, items: Any) -> Tensor:
        return torch.tensor(items)


class Careless(nn.Module):
    """A network with one of the mistakes that are made."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 99))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        if self.mistake == "dropout":
            return F.dropout(x, 0.5, training=True)
        if self.mistake == "batch":
            return x - x.mean(0)
        return x / torch.zeros_like(x) if self.mistake == "nan" else x


class CarelessFamily(AbstractFamily):
    """``careless/<mistake>``."""

    def matches(self, name: str) -> bool:
        return name.startswith("careless/")

    def load(self, name: str, *_: Any) -> tuple[nn.Module, AbstractAdapter]:
        return Careless(name.partition("/")[2]), Numbers()


@pytest.fixture
def careless() -> Iterator[None]:
    FAMILIES.register("careless", CarelessFamily)
    yield
    del FAMILIES["careless"]


@pytest.mark.usefixtures("careless")
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("dropout", r"^careless/dropout draws random numbers in eval mode: two calls give features \d+% apart"),
        ("batch", r"^careless/batch mixes the examples of a batch: beside others, features of an example are \d"),
        ("nan", r"^careless/nan gives features that are not finite"),
    ],
)
def test_chance_and_company_are_noticed(mistake: str, message: str):
    with pytest.raises(ValueError, match=message):
        mtl.load_backbone(f"careless/{mistake}")
    assert mtl.load_backbone("careless/none").width == 99


def test_a_masked_autoencoder_sees_the_whole_image_in_order(tmp_path: Path):
    """Its own forward leaves out three patches of four at random, and shuffles the others."""
    config = {**HF_IMAGES["vit"], "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1}
    where = folder(tmp_path, "vit_mae", config | {"decoder_num_attention_heads": 1})
    backbone: Any = mtl.load_backbone(where, pretrained=False, pooling="mean")
    x = backbone.example_inputs(2).tensor
    assert torch.equal(backbone.features(x), backbone.features(x))
    plain = type(backbone.model)(backbone.model.config).eval()
    plain.load_state_dict(backbone.model.state_dict())
    hidden = plain(x, noise=torch.arange(4.0).expand(2, -1)).last_hidden_state
    assert hidden.shape == (2, 5, 16)
    torch.testing.assert_close(backbone.features(x), hidden[:, 1:].mean(1))
    assert torch.equal(copy.deepcopy(backbone).features(x), backbone.features(x))
