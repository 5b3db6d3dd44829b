"""Baselines on a readout of several levels: which rows there are, what they read, what is tuned and what is frozen."""

from __future__ import annotations

import pytest
import torch
from tiny import Blobs, backbone
from torch import Tensor

import mtl
from mtl.fewshot import BASELINES, FeatureStatistics, Setup, choose_baselines
from mtl.fewshot.baselines import fine_tune, fine_tuning, setup

STEPS = 5
ON_ALL = ["logistic_all", "ridge_all", "ridge_weighted", "lda_all"]


@pytest.fixture
def network(monkeypatch) -> mtl.Backbone:
    monkeypatch.setattr(setup, "level_widths", lambda backbone: (7, 5, 12))
    return backbone(depth=1)


@pytest.fixture(scope="module")
def episode() -> mtl.Episode:
    [(_, episode)] = mtl.stack_by_shape([Blobs(queries=20).sample(i) for i in range(3)])
    return episode


def method(network: mtl.Backbone, key: str, **options) -> mtl.fewshot.Method:
    [found] = mtl.baselines(network, table=choose_baselines(key), steps=STEPS, **options)
    return found


def statistics(network: mtl.Backbone) -> FeatureStatistics:
    return FeatureStatistics.of_tasks(network, Blobs(), 8)


def test_rows_of_several_levels_are_left_out_of_a_backbone_of_one():
    one_level = backbone(depth=1)
    assert not any("levels" in m.name for m in mtl.baselines(one_level))
    assert len(mtl.baselines(one_level)) == len(BASELINES) - len(ON_ALL)
    assert mtl.baselines(one_level, table=choose_baselines(*ON_ALL)) == []


@pytest.mark.parametrize("key", [k for k in BASELINES if k != "full"])
@pytest.mark.parametrize("given", [False, True])
def test_every_row_solves_every_task_alone(network, episode, key, given):
    found = method(network, key, statistics=statistics(network) if given else None)
    together = found(episode)
    assert torch.equal(together, torch.cat([found(episode[t : t + 1]) for t in range(3)]))
    assert (together == episode.query.labels).float().mean() > 0.45, "three balanced classes"


@pytest.mark.parametrize("key", ["ncm", "logistic", "ridge", "lda", "head"])
def test_rows_on_the_last_level_read_no_other(network, episode, key, monkeypatch):
    before = method(network, key)(episode)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *args: noise_before(forward(*args), 12))
    assert torch.equal(before, method(network, key)(episode))


@pytest.mark.parametrize("key", [*ON_ALL, "modulation", "two_stage"])
def test_rows_on_all_levels_read_the_others(network, episode, key, monkeypatch):
    before = method(network, key)(episode)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *args: noise_before(forward(*args), 12))
    assert not torch.equal(before, method(network, key)(episode))


def noise_before(features: Tensor, place: int) -> Tensor:
    noise = 9 * torch.randn(features.shape, generator=torch.Generator().manual_seed(features.shape[1]))
    return torch.cat([noise[..., :place], features[..., place:]], -1)


@pytest.mark.parametrize("key", ON_ALL)
def test_standardising_undoes_the_scale_of_a_channel(network, episode, key, monkeypatch):
    before = method(network, key, statistics=statistics(network))(episode)
    forward, factors = network.forward, torch.logspace(-3, 3, network.width)
    monkeypatch.setattr(network, "forward", lambda *args: forward(*args) * factors + factors)
    monkeypatch.setattr("mtl.fewshot.statistics.level_widths", lambda backbone: (1,) * backbone.width)
    scaled = method(network, key, statistics=statistics(network))(episode)
    assert (before == scaled).float().mean() > 0.97, "rounding may turn a tie"


def test_standardised_features_of_the_last_level_are_a_setting(network, episode):
    for key, value in (("logistic", (10.0, "standardised")), ("ridge", (0.1, "standardised"))):
        setting = BASELINES[key].setting
        plain = method(network, key, **{setting: value[0]})(episode)
        assert not torch.equal(plain, method(network, key, statistics=statistics(network), **{setting: value})(episode))
        assert value in BASELINES[key].candidates(Setup(network, 1, statistics(network)))
        assert value not in BASELINES[key].candidates(Setup(network))


def test_statistics_of_another_network_are_refused(network):
    with pytest.raises(ValueError, match=r"feature statistics of 3 features, but .* has 24"):
        mtl.baselines(network, statistics=FeatureStatistics(torch.zeros(3), torch.ones(3)))


# --- two stages -------------------------------------------------------------------------------------------------------


def test_the_second_stage_moves_the_head_alone(episode):
    seen: list[dict[str, Tensor]] = []
    start = {"scale": torch.ones(3, 256)}

    def features(weights: dict[str, Tensor], inputs: mtl.Inputs) -> Tensor:
        seen.append({k: v.detach().clone() for k, v in weights.items()})
        return inputs.tensor.flatten(2) * weights["scale"].unsqueeze(1)

    fine_tune(episode, start, features, 0.1, 4, head_steps=3)
    # The class means that the head starts from, four steps, the support set of the second stage, the queries.
    assert len(seen) == 1 + 4 + 1 + 1
    assert not torch.equal(seen[1]["scale"], seen[5]["scale"]), "the first stage moves it"
    assert torch.equal(seen[5]["scale"], seen[6]["scale"]), "the second does not"
    assert not torch.equal(seen[5]["head.weight"], seen[6]["head.weight"])


@pytest.mark.parametrize("sites", [True, False])
def test_two_stages_share_the_steps(network, episode, monkeypatch, sites):
    if not sites:
        monkeypatch.setattr(network, "modulation_width", 0)
    calls = []
    spy = lambda *args, head_steps: (calls.append((args, head_steps)), args[0].query.labels)[1]  # noqa: E731
    monkeypatch.setattr(fine_tuning, "fine_tune", spy)
    for key in ("modulation", "two_stage"):
        found = method(network, key)
        found(episode)
        (_, start, _, _, steps), head_steps = calls.pop()
        assert (steps, head_steps) == {"modulation": (5, 0), "two_stage": (3, 2)}[key]
        assert start["scale"].shape == (3, network.modulation_width + network.width)
        assert found.adapted_values(3) == 2 * (network.modulation_width + network.width) + 3 * network.width


def test_a_readout_without_sites_is_passed_through_once(network, episode, monkeypatch):
    monkeypatch.setattr(network, "modulation_width", 0)
    calls, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda *args: (calls.append(1), forward(*args))[1])
    method(network, "modulation")(episode)
    assert len(calls) == 2


def test_cached_features_are_refused_by_what_changes_the_network(network):
    features = mtl.Examples({"readout": torch.zeros(1, 3, 24)}, torch.arange(3)[None])
    with pytest.raises(ValueError, match="full fine-tuning needs the images or tokens, but the inputs are cached"):
        method(network, "full")(mtl.Episode(features, features, 3))


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_rows_are_chosen_by_key_in_the_order_given():
    assert list(choose_baselines("two_stage", "ncm", "lora")) == ["two_stage", "ncm", "lora"]
    with pytest.raises(ValueError, match=r"no baseline is called 'ridge_al': did you mean ridge_all or ridge"):
        choose_baselines("ncm", "ridge_al")
    with pytest.raises(ValueError, match=r"no baseline is called '#': There are ncm, logistic"):
        choose_baselines("#")
