"""Large support and query sets: in chunks, or with gradients through some examples only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import batch, build
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import adapting
from mtl.fewshot.lite import lite_examples
from mtl.tools.memory import LiveBytes

NETWORKS = ["vit_tiny_patch16_224", "test_convnext", "bert", "llama", "gpt2"]


def learner_of(network: mtl.Backbone, k: int = 2, **options: Any) -> mtl.MetaLearner:
    return mtl.MetaLearner(network, mtl.Static(network.sites, network.width, 0.02), inner_steps=k, **options)


def gradient(learner: mtl.MetaLearner, inputs: Any, labels: torch.Tensor) -> torch.Tensor:
    examples = mtl.Examples(inputs, labels)
    meta = {n: v.detach() for n, v in learner.generator(learner.view(examples)).items()}
    result = learner.meta_gradient(mtl.Episode(examples, examples, int(labels.max()) + 1), meta)
    return torch.cat([g.flatten() for g in result.grads.values()])


@pytest.mark.parametrize("pull", ["reverse", "finite-difference"])
@pytest.mark.parametrize("last_k", [None, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_change_no_number(name: str, last_k: int | None, pull: Any, tmp_path: Path):
    network = build(name, tmp_path, last_k=last_k)
    inputs, labels = batch(network, 2, 6), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    learner = learner_of(network, estimator=mtl.Rematerialised(pull))
    expected, view = gradient(learner, inputs, labels), learner.view(mtl.Examples(inputs, labels))
    for size, blocks in ((4, False), (1, False), (4, True)):
        network.configure(examples_per_chunk=size, checkpoint_blocks=blocks)
        found = gradient(learner, inputs, labels)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        again = learner.view(mtl.Examples(inputs, labels))
        for a, b in zip([again.features, *again.activations], [view.features, *view.activations], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_memory_does_not_grow_with_examples_in_chunks():
    network = backbone(depth=4)

    def peak(n: int, size: int | None) -> int:
        network.configure(examples_per_chunk=size)
        inputs, labels = torch.randn(1, n, 1, 16, 16), (torch.arange(n) % 2)[None]
        learner = learner_of(network, 1, estimator=mtl.Windowed(1, pull=mtl.metagrad.FiniteDifference()))
        with LiveBytes() as counter:
            gradient(learner, inputs, labels)
        return counter.peak

    assert peak(64, 4) < 0.3 * peak(64, None)
    assert peak(64, 4) < 2 * peak(16, 4), "features and the like are all that is kept of an example"


@pytest.mark.parametrize("head", [mtl.Cosine(), mtl.NearestClassMean(), mtl.Ridge()])
def test_the_gradient_through_some_examples_is_the_full_one_on_average(head: Any, monkeypatch):
    network = backbone()
    [(_, episode)] = mtl.stack_by_shape([Blobs().sample(0)])  # six support examples
    whole, some = (learner_of(network, 1, head=head, lite_examples=h) for h in (None, 2))
    meta = {n: v.detach() for n, v in whole.generator(whole.view(episode.support)).items()}
    weights = {k: v.detach().requires_grad_() for k, v in whole.problem(episode).init(meta).items()}

    def of(learner: mtl.MetaLearner) -> tuple[torch.Tensor, torch.Tensor]:
        loss = learner.problem(episode).inner_loss(weights, meta, 0)
        found = torch.autograd.grad(loss.sum(), list(weights.values()))
        return loss.detach(), torch.cat([g.flatten() for g in found])

    loss, expected = of(whole)
    found = []
    for chosen in itertools.combinations(range(6), 2):
        monkeypatch.setattr(adapting, "draw_lite_examples", lambda *_, c=chosen: lambda step: torch.tensor(c))
        value, each = of(some)
        torch.testing.assert_close(value, loss)
        found.append(each)
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-4, atol=1e-6)
    assert (found[0] - expected).norm() > 0.01 * expected.norm(), "one draw alone is another gradient"


def test_the_same_examples_are_drawn_by_everybody_and_others_in_the_next_step():
    first, second = (Blobs(shots=8).sample(i).support for i in (0, 1))
    draw = lite_examples(first, 5)
    assert torch.equal(draw(3), lite_examples(first, 5)(3))
    assert not torch.equal(draw(3), draw(4))
    assert not torch.equal(draw(3), lite_examples(second, 5)(3))
    assert len(set(draw(3).tolist())) == 5
    assert lite_examples(first, 24)(0) is None, "all of them"


@pytest.mark.parametrize("last_k", [None, 1])
def test_gradients_through_fewer_examples_take_less_memory_and_train(last_k: int | None):
    network = backbone(depth=4, last_k=last_k)
    episode = Blobs(ways=2, shots=32).sample(0)

    def peak(count: int | None) -> int:
        learner = learner_of(network, 3, lite_examples=count)
        meta = {n: v.detach() for n, v in learner.generator(learner.view(episode.support)).items()}
        with LiveBytes() as counter:
            grads = learner.meta_gradient(episode, meta).grads
        assert all(torch.isfinite(g).all() for g in grads.values())
        return counter.peak

    assert peak(4) < 0.5 * peak(None)


def test_gradients_through_no_example_are_refused():
    network = backbone()
    with pytest.raises(ValueError, match=r"lite_examples=0.*at least one"):
        learner_of(network, lite_examples=0)
