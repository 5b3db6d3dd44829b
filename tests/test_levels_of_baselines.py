"""Baselines on a readout of several levels: which rows there are, what they read, what is tuned and what is frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import Blobs, backbone
from torch import Tensor

import mtl
from mtl.fewshot import BASELINES, FeatureStatistics, Setup, choose_baselines
from mtl.fewshot.baselines import fine_tune, fine_tuning

STEPS = 5
ON_ALL = ["logistic_all", "ridge_all", "ridge_weighted", "lda_all"]


@pytest.fixture
def network() -> mtl.Backbone:
    return backbone(depth=1, levels="all")


@pytest.fixture
def without_sites() -> mtl.Backbone:
    return backbone(depth=1, levels="all", sites="none")


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
    monkeypatch.setattr(network, "forward", lambda *args: noise_before(forward(*args), network.last.start))
    assert torch.equal(before, method(network, key)(episode))


@pytest.mark.parametrize("key", [*ON_ALL, "modulation", "two_stage"])
def test_rows_on_all_levels_read_the_others(network, episode, key, monkeypatch):
    before = method(network, key)(episode)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *args: noise_before(forward(*args), network.last.start))
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
    with pytest.raises(ValueError, match=r"feature statistics of 3 features, but .* has"):
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


def test_two_stages_share_the_steps(network, without_sites, episode, monkeypatch):
    calls = []
    inside = lambda e, start, features, lr, steps, *, head_steps, prepare: (  # noqa: E731
        calls.append((steps, head_steps, start["scale"].shape)),
        e.query.labels,
    )[1]
    on_readout = lambda e, lr, steps, *, head_steps: (  # noqa: E731
        calls.append((steps, head_steps, (e.tasks, e.support.inputs.shape[-1]))),
        e.query.labels,
    )[1]
    monkeypatch.setattr(fine_tuning, "fine_tune", inside)
    monkeypatch.setattr(fine_tuning, "tune_on_readout", on_readout)
    for b in (network, without_sites):
        channels = b.modulation_width + b.width
        for key, steps in (("modulation", (5, 0)), ("two_stage", (3, 2))):
            found = method(b, key)
            found(episode)
            assert calls.pop() == (*steps, (3, channels))
            assert found.adapted_values(3) == 2 * channels + 3 * b.width


def test_a_readout_without_sites_is_passed_through_once(without_sites, episode, monkeypatch):
    calls, forward = [], without_sites.forward
    monkeypatch.setattr(without_sites, "forward", lambda *args: (calls.append(1), forward(*args))[1])
    method(without_sites, "modulation")(episode)
    assert len(calls) == 2


@pytest.mark.parametrize("key", [k for k in BASELINES if k != "full"])
def test_cached_features_serve_as_inputs(without_sites, episode, key):
    found = method(without_sites, key)
    read = lambda x: mtl.Examples({"readout": without_sites(x.inputs)}, x.labels)  # noqa: E731
    cached = replace(episode, support=read(episode.support), query=read(episode.query))
    assert torch.equal(found(episode), found(cached))


def test_cached_features_are_refused_by_what_changes_the_network(network):
    features = mtl.Examples({"readout": torch.zeros(1, 3, network.width)}, torch.arange(3)[None])
    with pytest.raises(ValueError, match="full fine-tuning needs the images or tokens, but the inputs are cached"):
        method(network, "full")(mtl.Episode(features, features, 3))


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_rows_are_chosen_by_key_in_the_order_given():
    assert list(choose_baselines("two_stage", "ncm", "lora")) == ["two_stage", "ncm", "lora"]
    with pytest.raises(ValueError, match=r"no baseline is called 'ridge_al': did you mean ridge_all or ridge"):
        choose_baselines("ncm", "ridge_al")
    with pytest.raises(ValueError, match=r"no baseline is called '#': There are ncm, logistic"):
        choose_baselines("#")
