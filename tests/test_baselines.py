"""Baselines: batches of tasks equal single tasks, the backbone stays as it is, closed forms equal other people's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tiny import Blobs, backbone

import mtl

STEPS = 4
NAMES = [
    "nearest class mean",
    "nearest class mean, centred",
    "logistic regression",
    "ridge regression",
    "LDA with shrinkage",
    f"head only, {STEPS} steps",
    f"scale/shift, {STEPS} steps",
    f"scale/shift then head, {STEPS} steps",
    f"full fine-tuning, {STEPS} steps",
]
RATES = ("head_lr", "modulation_lr", "two_stage_lr", "full_lr")


@pytest.fixture(scope="module")
def network() -> mtl.Backbone:
    return backbone(depth=1)


@pytest.fixture(scope="module")
def methods(network) -> dict[str, mtl.fewshot.Method]:
    found = mtl.baselines(network, steps=STEPS, full_lr=1e-2, centre=torch.zeros(network.width))
    return {m.name: m for m in found}


@pytest.fixture(scope="module")
def episode() -> mtl.Episode:
    [(_, episode)] = mtl.stack_by_shape([Blobs(queries=20).sample(i) for i in range(3)])
    return episode


def accuracy(method: mtl.fewshot.Method, episode: mtl.Episode) -> float:
    return (method(episode) == episode.query.labels).float().mean().item()


def test_names(methods):
    assert list(methods) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_tasks_is_task_by_task(methods, episode, name):
    together = methods[name](episode)
    alone = torch.cat([methods[name](episode[t : t + 1]) for t in range(episode.tasks)])
    assert together.shape == episode.query.labels.shape
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_stays_as_it_is(methods, network, episode, name):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    methods[name](episode[:1])
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not network.model.training


@pytest.mark.parametrize("name", NAMES)
def test_query_labels_are_invisible(methods, episode, name):
    lying = replace(episode, query=mtl.Examples(episode.query.inputs, 2 - episode.query.labels))
    assert torch.equal(methods[name](episode), methods[name](lying))


@pytest.mark.parametrize("name", NAMES)
def test_better_than_chance(methods, episode, name):
    assert accuracy(methods[name], episode) > 0.45, "three balanced classes"


@pytest.mark.parametrize("name", NAMES[5:])
def test_every_fine_tuning_moves_something(network, episode, name):
    # A step size of nothing is the class means that the head starts from; a large one is not.
    still, moved = (
        {m.name: m for m in mtl.baselines(network, steps=STEPS, **dict.fromkeys(RATES, lr))}[name] for lr in (1e-9, 1.0)
    )
    start = mtl.baselines(network)[0]
    assert torch.equal(still(episode), start(episode))
    assert not torch.equal(moved(episode), start(episode))


def test_logistic_regression_is_scikit_learns(methods, network, episode):
    with torch.no_grad():
        seen, asked = (F.normalize(network(x.inputs), dim=-1).numpy() for x in (episode.support, episode.query))
    found = methods["logistic regression"](episode)
    for t in range(episode.tasks):
        model = LogisticRegression(C=1.0, max_iter=1000).fit(seen[t], episode.support.labels[t].numpy())
        assert found[t].tolist() == model.predict(asked[t]).tolist()


def test_ridge_is_its_normal_equations(methods, network, episode):
    with torch.no_grad():
        seen, asked = (F.normalize(network(x.inputs), dim=-1) for x in (episode.support, episode.query))
    targets = F.one_hot(episode.support.labels, 3).float() - 1 / 3
    weight = torch.linalg.solve(seen.mT @ seen + torch.eye(network.width), seen.mT @ targets)
    assert torch.equal(methods["ridge regression"](episode), (asked @ weight).argmax(-1))


def test_centring_takes_the_mean_feature_away(network, episode):
    plain, centred = mtl.baselines(network, centre=torch.full((network.width,), 100.0))[:2]
    assert centred.name.endswith("centred")
    assert not torch.equal(plain(episode), centred(episode))


def test_adapted_values(methods, network):
    w, sites = network.width, network.modulation_width
    weights = sum(p.numel() for p in network.model.parameters())
    expected = [0, 0, 5 * (w + 1), 0, 0, 5 * w, 5 * w + 2 * sites, 5 * w + 2 * sites, 5 * w + weights]
    assert [methods[n].adapted_values(5) for n in NAMES] == expected


def test_a_bfloat16_network_works_too(episode):
    for method in mtl.baselines(backbone(depth=1).to(torch.bfloat16), steps=1):
        assert accuracy(method, episode) > 0.4, method.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_episodes_follow_the_backbone_to_its_device(episode):
    network = backbone(depth=1).to("cuda")
    for method in mtl.baselines(network, steps=2, centre=torch.zeros(network.width)):
        assert method(episode).device.type == "cuda", method.name


def test_a_setting_that_no_baseline_has_is_refused(network):
    with pytest.raises(ValueError, match=r"no setting \['lr'\]; expected some of \['c', 'c_all', 'full_lr', 'head_lr'"):
        mtl.baselines(network, lr=0.1)
