"""Every family of text networks: meta-gradients are exact, padding changes nothing, cached prefixes neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TEXT, batch, build, modulation_of
from torch import Tensor

import mtl

ENCODERS_WITH_A_PREFIX = ["bert", "roberta", "distilbert"]


def tokens(backbone: mtl.Backbone, n: int = 8) -> dict[str, Tensor]:
    """Two tasks of texts of unequal length."""
    inputs: Any = batch(backbone, 2, n // 2)
    mask = inputs["attention_mask"].clone()
    mask[:, ::2, -3:] = 0
    return inputs | {"attention_mask": mask, "input_ids": inputs["input_ids"].clamp(min=2)}


def gradients(backbone: mtl.Backbone, estimator: mtl.metagrad.AbstractEstimator) -> mtl.metagrad.MetaGradient:
    torch.manual_seed(0)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, hidden=8, gate=0.2).double()
    learner = mtl.MetaLearner(backbone, generator, inner_steps=3, estimator=estimator)
    labels = torch.tensor([[0, 0, 1, 1]] * 2)
    episode = mtl.Episode(mtl.Examples(tokens(backbone), labels), mtl.Examples(tokens(backbone), labels.flip(1)), 2)
    emitted = learner.generator(learner.view(episode.support))
    return learner.meta_gradient(episode, {k: v.detach().clone().requires_grad_() for k, v in emitted.items()})


@pytest.mark.parametrize("name", TEXT)
def test_meta_gradients_are_exact(name: str, tmp_path: Path):
    backbone = build(name, tmp_path).double()
    exact = gradients(backbone, mtl.Exact())
    for estimator in (mtl.Rematerialised(), mtl.Windowed(window=1)):
        found = gradients(backbone, estimator)
        for key, value in exact.grads.items():
            # Rotary and T5 networks compute some of it in float32 whatever they are given.
            assert (found.grads[key] - value).abs().max() <= 1e-4 * value.abs().max(), key
    first_order = gradients(backbone, mtl.FirstOrder())
    apart = [
        (first_order.grads[k] - v).abs().max() / v.abs().max() for k, v in exact.grads.items() if k in first_order.grads
    ]
    assert max(apart) > 1e-3, "the measure can see a wrong gradient"


@pytest.mark.parametrize("name", TEXT)
def test_padding_changes_nothing(name: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    modulation = modulation_of(backbone)
    inputs = tokens(backbone)
    longer = {k: torch.cat([v, torch.zeros_like(v[..., :4])], -1) for k, v in inputs.items()}
    found, expected = backbone(longer, modulation), backbone(inputs, modulation)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    other = inputs | {"input_ids": inputs["input_ids"].where(inputs["attention_mask"] > 0, 7)}
    assert (backbone(other, modulation) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("last_k", [None, 1])
@pytest.mark.parametrize("name", TEXT)
def test_one_text_and_many_have_the_same_cache(name: str, last_k: int | None, tmp_path: Path):
    """Position embeddings of one text look like those of a batch of one."""
    backbone = build(name, tmp_path, last_k=last_k)
    flat = {k: v.flatten(0, 1) for k, v in tokens(backbone).items()}
    one: Any = backbone.with_prefix({k: v[:1] for k, v in flat.items()})
    assert one.keys() == backbone.with_prefix(flat).keys()


@pytest.mark.parametrize("name", TEXT)
def test_a_cached_prefix_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = build(name, tmp_path, last_k=1)
    inputs, modulation = tokens(backbone), modulation_of(backbone)
    flat = {k: v.flatten(0, 1) for k, v in inputs.items()}
    known: Any = backbone.with_prefix(flat)
    assert ("prefix" in known) >= (name in ENCODERS_WITH_A_PREFIX)
    cut = {k: v[[3, 0, 5, 6]].unflatten(0, (2, 2)) for k, v in known.items()}  # in other company
    plain = {k: v for k, v in cut.items() if k != "prefix"}
    if "prefix" in cut:
        longer = {k: torch.cat([v, torch.zeros_like(v[:, :, :2])], 2) for k, v in cut.items()}  # and other padding
        cut = longer
        first = next(m for n, m in backbone.model.named_modules() if isinstance(m, torch.nn.Embedding))
        monkeypatch.setattr(first, "forward", lambda ids: torch.full((*ids.shape, first.embedding_dim), torch.nan))
    found = backbone(cut, modulation), *backbone.observe(cut)
    monkeypatch.undo()
    expected = backbone(plain, modulation), *backbone.observe(plain)
    for a, b in zip((found[0], found[1], *found[2]), (expected[0], expected[1], *expected[2]), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_texts_are_cut_at_max_length(tmp_path: Path):
    with pytest.raises(ValueError, match="max_length=17: expected 2 to 16 tokens"):
        build("bert", tmp_path, max_length=17)
    assert build("bert", tmp_path, max_length=5).adapter.max_length == 5  # type: ignore[attr-defined]


def test_images_have_no_max_length(tmp_path: Path):
    with pytest.raises(ValueError, match="max_length=5 is for texts"):
        build("vit", tmp_path, max_length=5)
