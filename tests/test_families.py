"""A family of backbones of one's own: registered, loaded by name, trained, saved and found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl
from mtl.networks import FAMILIES, AbstractAdapter, AbstractFamily


class Vectors(AbstractAdapter):
    """Lists of four numbers."""

    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs)

    def example(self, n: int) -> Tensor:
        return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))

    def preprocess(self, items: Sequence[list[float]]) -> Tensor:
        return torch.tensor(items)


class Mine(AbstractFamily):
    """Small networks on vectors, of any depth: ``"mine/3"``."""

    def matches(self, name: str) -> bool:
        return name.startswith("mine/")

    def load(
        self, name: str, pretrained: bool, checkpoint: str | Path | None, pooling: str | None, args: dict[str, Any]
    ) -> tuple[nn.Module, AbstractAdapter]:
        depth = int(name.removeprefix("mine/"))
        layers = [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh()) for _ in range(depth)]
        return nn.Sequential(*layers), Vectors()


@pytest.fixture
def mine() -> Iterator[None]:
    FAMILIES.register("mine", Mine, help="Small networks on vectors.")
    yield
    del FAMILIES["mine"]


SUPPORT = {"low": [[-1.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]], "high": [[1.0, 0.0, 0.0, 0.0]]}


@pytest.mark.usefixtures("mine")
def test_a_family_of_ones_own_is_trained_saved_and_found_again(tmp_path: Path):
    backbone = mtl.load_backbone("mine/3", last_k=1, seed=4)
    assert [s.name for s in backbone.sites] == ["2.1"]
    assert mtl.load_backbone(**backbone.spec()["load"]).fingerprint() == backbone.fingerprint()
    assert mtl.load_backbone("mine/3", seed=5).fingerprint() != backbone.fingerprint()
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width, 0.05), inner_steps=2)
    examples = mtl.Examples(backbone.example_inputs(6).with_task_axis(), torch.tensor([[0, 0, 0, 1, 1, 1]]))
    assert learner.meta_step(mtl.Episode(examples, examples, 2)).finite
    assert any(p.grad is not None and bool(p.grad.any()) for p in learner.generator.parameters())
    mtl.save_pretrained(learner, tmp_path / "saved")
    again = mtl.from_pretrained(tmp_path / "saved")
    found, expected = (made.adapt(SUPPORT).logits(examples.inputs) for made in (again, learner))
    torch.testing.assert_close(found, expected)
    assert again.predict([[1.5, 0.0, 0.0, 0.0]]) in (["low"], ["high"])


def test_a_name_of_no_family_says_how_to_register_one(mine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = mtl.load_backbone("mine/1").spec()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(FAMILIES, "mine")
    with pytest.raises(OSError, match=r"no weights for 'mine/1'.*mtl.networks.FAMILIES.register\('mine', YourFamily\)"):
        mtl.load_backbone(**spec["load"])
    FAMILIES.register("mine", Mine)


@pytest.mark.usefixtures("mine")
def test_no_plain_format_for_it_is_said_before_anything_is_written(tmp_path: Path):
    backbone = mtl.load_backbone("mine/2")
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width), inner_steps=1)
    with pytest.raises(ValueError, match=r"mine/2 is neither of timm nor of transformers.*to=\"pt2\""):
        mtl.export(learner.adapt(SUPPORT), tmp_path / "out")
    assert not (tmp_path / "out").exists()
