"""The frozen prefix, replayed, changes no number and spares the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, batch, build, modulation_of, patched
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mtl.networks.backbones.prefix import FrozenPrefix
from mtl.networks.modulation import Modulator, Site


def gradients(backbone, inputs, modulation) -> list[Tensor]:
    """Features, and first and second derivatives of a loss on them in the scale."""
    scale = modulation.scale.detach().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        features = backbone(inputs, type(modulation)(scale, modulation.shift))
        (g,) = torch.autograd.grad(features.pow(3).sum(), scale, create_graph=True)
    (h,) = torch.autograd.grad(g.pow(2).sum(), scale)
    return [features.detach(), g.detach(), h]


@pytest.mark.parametrize("last_k", [None, 1])
@pytest.mark.parametrize("sites", ["norm", "ssf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_replay_changes_no_number(name: str, sites: Any, last_k: int | None, tmp_path: Path):
    try:
        backbone = build(name, tmp_path, sites=sites, last_k=last_k)
    except ValueError as e:
        pytest.skip(str(e))
    inputs, modulation = batch(backbone), modulation_of(backbone)
    prepared = backbone.prepare(inputs)
    assert prepared.stored is not None or not backbone._prefix
    plain = gradients(backbone, inputs, modulation)
    for _ in range(2):  # a replay leaves what is stored as it was
        for found, expected in zip(gradients(backbone, prepared, modulation), plain, strict=True):
            # The prefix ran with another attention kernel.
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not patched(backbone.model), "the model is left as it was"


def test_blocks_below_the_first_site_are_not_computed_again(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path, depth=4, last_k=1)
    inputs, modulation = batch(backbone), modulation_of(backbone)
    prepared, called = backbone.prepare(inputs), []
    for name, module in backbone.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    backbone(prepared, modulation)
    assert "blocks.3.attn.qkv" in called
    assert not {"blocks.0.attn.qkv", "blocks.2.attn.qkv", "patch_embed.proj"} & set(called)
    kept = [x for x in tree_leaves(prepared.stored.outputs) if isinstance(x, Tensor)]
    assert len(kept) == 1, "what only the prefix itself reads is not stored"


def test_rotary_tables_are_kept_for_the_blocks_that_read_them(tmp_path: Path):
    backbone = build("llama", tmp_path, last_k=1)
    stored = backbone.prepare(batch(backbone)).stored
    kept = [x for x in tree_leaves(stored.outputs) if isinstance(x, Tensor)]
    assert len(kept) == 3, "sines, cosines and the last frozen block's output"


def test_a_failing_forward_leaves_the_model_alone(tmp_path: Path):
    backbone = build("bert", tmp_path, last_k=1)
    prepared = backbone.prepare(batch(backbone))
    layer = backbone.model.encoder.layer[-1]
    handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone(prepared, modulation_of(backbone))
    handle.remove()
    assert not patched(backbone.model)


def test_a_module_used_on_both_sides_is_computed():
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.norm = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.norm(self.twice(self.once(x))))

    model, x = Shared(), torch.randn(2, 4)
    prefix = FrozenPrefix(Modulator(model, [Site("norm", 4, -1, "")]), lambda n: model(torch.randn(n, 4)))
    stored = prefix.record(lambda: model(x))
    assert len(stored.outputs) == 1, "the first layer alone"
    with prefix.replaying(stored):
        assert torch.equal(model(torch.zeros(2, 4)), model(x))
