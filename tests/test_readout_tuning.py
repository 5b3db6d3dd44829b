"""Tuning on fixed features: the gradient written out is autograd's, and tasks together are the tasks one by one."""

from __future__ import annotations

import pytest
import torch
from tiny import Blobs, backbone
from torch import Tensor

import mtl
from mtl.fewshot.baselines import fine_tune, fine_tuning, readout_tuning
from mtl.fewshot.baselines.readout_tuning import tune_on_readout
from mtl.metagrad.tensors import Tensors

TASKS, WAYS, SHOTS, WIDTH = 3, 4, 2, 30
STEPS = 20


@pytest.fixture
def episode() -> mtl.Episode:
    """Random features in float64: what differs beyond rounding shows."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(WAYS).repeat_interleave(SHOTS).expand(TASKS, -1)

    def side() -> mtl.Examples:
        return mtl.Examples(torch.randn(TASKS, WAYS * SHOTS, WIDTH, generator=draw, dtype=torch.float64), labels)

    return mtl.Episode(side(), side(), WAYS)


def by_autograd(episode: mtl.Episode, modulated: bool, steps: int, head_steps: int) -> Tensor:
    start = {"scale": torch.ones(TASKS, WIDTH).double(), "shift": torch.zeros(TASKS, WIDTH).double()}

    def features(weights: Tensors, inputs: mtl.Inputs) -> Tensor:
        if not modulated:
            return inputs.tensor
        return inputs.tensor * weights["scale"].unsqueeze(1) + weights["shift"].unsqueeze(1)

    return fine_tune(episode, start if modulated else {}, features, 0.05, steps, head_steps=head_steps)


@pytest.mark.parametrize(("modulated", "head_steps"), [(True, 0), (True, 7), (False, 0)])
def test_it_is_fine_tuning_by_autograd(episode, modulated, head_steps):
    found = tune_on_readout(episode, 0.05, STEPS, modulated=modulated, head_steps=head_steps)
    torch.testing.assert_close(found, by_autograd(episode, modulated, STEPS, head_steps), rtol=1e-8, atol=1e-8)


def test_tasks_together_are_the_tasks_one_by_one(episode, monkeypatch):
    together = tune_on_readout(episode, 0.05, STEPS, head_steps=5)
    sizes, tune = [], readout_tuning._tune
    monkeypatch.setattr(readout_tuning, "_tune", lambda part, *rest: (sizes.append(part.tasks), tune(part, *rest))[1])
    for values, expected in ((2 * WAYS * SHOTS * WIDTH, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(readout_tuning, "VALUES_AT_ONCE", values)
        torch.testing.assert_close(tune_on_readout(episode, 0.05, STEPS, head_steps=5), together)
        assert sizes == expected
        sizes.clear()


def test_features_of_length_zero_stay_finite(episode):
    zero = mtl.Examples(torch.zeros_like(episode.support.inputs.tensor), episode.support.labels)
    assert tune_on_readout(mtl.Episode(zero, zero, WAYS), 0.05, 3).isfinite().all()


def test_inside_a_network_tasks_go_through_it_as_many_at_a_time_as_fit(monkeypatch):
    [(_, episode)] = mtl.stack_by_shape([Blobs(queries=5).sample(i) for i in range(3)])
    network = backbone(depth=2, last_k=1)
    [method] = mtl.baselines(network, table=mtl.fewshot.choose_baselines("modulation"), steps=4)
    together = method.answers(episode)[1]
    per_task = episode.support.inputs.tensor[0].numel()
    monkeypatch.setattr("mtl.networks.backbones.prepared_inputs.VALUES_PER_PASS", 2 * per_task)
    assert fine_tuning.tasks_at_once(episode) == 2
    torch.testing.assert_close(method.answers(episode)[1], together, rtol=1e-5, atol=1e-5)


def test_what_lies_below_the_first_site_is_computed_once():
    episode, network = Blobs(queries=5).sample(0), backbone(depth=2, last_k=1)
    [method] = mtl.baselines(network, table=mtl.fewshot.choose_baselines("modulation"), steps=4)
    method(episode)  # finds the frozen prefix
    below, calls = network.model.get_submodule("blocks.0.attn"), []
    hook = below.register_forward_hook(lambda *_: calls.append(1))
    method(episode)
    hook.remove()
    assert len(calls) == 2, "once for the support set, once for the queries"
