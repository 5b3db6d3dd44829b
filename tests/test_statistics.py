"""Feature statistics: one pass is what all at once gives, dead channels stay small, files come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import FeatureStatistics


@pytest.fixture(scope="module")
def network() -> mtl.Backbone:
    return backbone(depth=1)


def test_one_pass_is_all_at_once(network):
    images = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = FeatureStatistics.of_features(network(images[None]))
    parts = FeatureStatistics.of(network, [images[:5], images[None, 5:9], mtl.Inputs.of(images[9:]), images[:0]])
    features = network(images[None])[0].double()
    assert torch.allclose(parts.mean, features.mean(0).float(), atol=1e-6)
    assert torch.allclose(parts.std, features.std(0, correction=0).float(), atol=1e-6)
    assert torch.allclose(whole.mean, parts.mean, atol=1e-6)
    assert torch.allclose(whole.std, parts.std, atol=1e-6)


def test_of_tasks_reads_support_and_query(network):
    found = FeatureStatistics.of_tasks(network, Blobs(), 3)
    examples = [x for i in range(3) for x in (Blobs().sample(i).support, Blobs().sample(i).query)]
    expected = FeatureStatistics.of_features(torch.cat([network(x.inputs)[0] for x in examples]))
    assert torch.allclose(found.mean, expected.mean, atol=1e-6)
    assert torch.allclose(found.std, expected.std, atol=1e-6)


def test_a_large_offset_cancels():
    x = 1e4 + torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = FeatureStatistics.of_features(x)
    assert torch.allclose(found.std, x.std(0, correction=0).float(), rtol=1e-6)


def test_standardised_features_have_mean_zero_and_deviation_one():
    x = torch.tensor([3.0, -1.0, 0.5]) + torch.randn(50, 3) * torch.tensor([10.0, 1.0, 2.0])
    z = FeatureStatistics.of_features(x).standardise(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0), torch.ones(3), atol=1e-5)
    assert FeatureStatistics.of_features(x).standardise(x.half()).dtype == torch.float32


def test_dead_channels_do_not_explode_and_blocks_have_floors_of_their_own():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0, 1e-3, 1e-3, 1e-9])
    found = FeatureStatistics.of_features(x, [3, 3])
    assert found.std[2] > 0.03
    assert (found.std[:2] > 0.9).all()
    assert torch.allclose(found.std[3:5], torch.full((2,), 1e-3), rtol=0.2), "a block of small features keeps its scale"
    assert 3e-5 < found.std[5] < 1e-4
    assert (FeatureStatistics.of_features(torch.zeros(4, 2)).std > 0).all()


def test_a_file_comes_back(tmp_path: Path):
    found = FeatureStatistics.of_features(torch.randn(9, 4))
    found.save(tmp_path / "statistics.safetensors")
    again = FeatureStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(found.mean, again.mean)
    assert torch.equal(found.std, again.std)
    save_file({"mean": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds the tensors \['mean'\]: expected 'mean' and 'std'"):
        FeatureStatistics.load(tmp_path / "other.safetensors")


def test_mistakes():
    with pytest.raises(ValueError, match=r"mean \(2,\), std \(3,\)"):
        FeatureStatistics(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="1 standard deviations are not positive"):
        FeatureStatistics(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="no example at all"):
        FeatureStatistics.of_features(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="1 of 2 features are not finite"):
        FeatureStatistics.of_features(torch.tensor([[1.0, float("nan")]]))


def test_cached_features_are_read_with_or_without_a_task_axis():
    network = backbone(depth=1, levels="all", sites="none")
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    cached = network.with_prefix(images)
    expected = FeatureStatistics.of(network, [images])
    for batch in (cached, {k: v[None] for k, v in cached.items()}):
        found = FeatureStatistics.of(network, [batch])
        assert torch.allclose(found.mean, expected.mean, atol=5e-3)
        assert torch.allclose(found.std, expected.std, atol=5e-3)
