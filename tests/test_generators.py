"""Generators beyond test_learner.py: step sizes, what is shared by tasks, and classes of unequal size."""

from __future__ import annotations

import pytest
import torch
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.generators.base import StepSizes

KINDS = pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)


def made(kind: type[mtl.fewshot.AbstractGenerator], **options) -> tuple[mtl.MetaLearner, mtl.fewshot.SupportView]:
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, kind(b.sites, b.width, **options), mtl.Linear())
    [(_, e)] = mtl.stack_by_shape([Blobs(shots=2).sample(i) for i in range(2)])
    return learner, learner.view(e.support)


@KINDS
def test_step_sizes_are_positive_and_follow_the_sites(kind):
    learner, view = made(kind, step_size=0.2)
    generator, head = learner.generator, {"head.weight": torch.zeros(2, 3, 24), "head.bias": torch.zeros(2, 3)}
    meta = generator(view)
    sizes = learner.model.step_sizes(meta)
    assert generator.adapted_values == sum(v[0].numel() for v in generator.init(meta).values())
    for name, weight in (generator.init(meta) | head).items():
        lr = sizes[name].expand_as(weight)  # broadcasts, or raises
        assert (lr > 0).all()
        assert torch.allclose(lr, torch.tensor(0.2), rtol=1e-3)


def test_every_site_has_its_own_step_size():
    sizes = StepSizes([2, 3], 0.1)
    with torch.no_grad():
        sizes.log_lr.copy_(torch.arange(1.0, 6).log())
    scale, shift, other = sizes.split(sizes.log_lr)
    torch.testing.assert_close(scale, torch.tensor([1.0, 1, 2, 2, 2]))
    torch.testing.assert_close(shift, torch.tensor([3.0, 3, 4, 4, 4]))
    torch.testing.assert_close(other, torch.tensor([5.0]))
    with torch.no_grad():
        sizes.log_lr.sub_(100)
    assert (sizes.split(sizes.log_lr)[0] > 0).all()


def test_only_the_conditioned_generator_tells_tasks_apart():
    """What the static control emits is the same whatever the support set."""
    learner, view = made(mtl.Static)
    meta = learner.generator(view)
    assert torch.equal(meta["scale"][0], meta["scale"][1])
    learner, view = made(mtl.SupportConditioned)
    scale = learner.generator(view)["scale"]
    assert not torch.allclose(scale[0], scale[1], atol=1e-4)


def test_a_task_code_starts_at_the_identity_exactly():
    learner, view = made(mtl.TaskCode, size=7)
    meta = learner.generator(view)
    weights = learner.generator.init(meta)
    assert {k: tuple(v.shape) for k, v in weights.items()} == {"code": (2, 7)}
    modulation = learner.generator.modulation(weights, meta)
    assert (modulation.scale == 1).all()
    assert (modulation.shift == 0).all()
    with pytest.raises(ValueError, match=r"TaskCode\(size=0\)"):
        made(mtl.TaskCode, size=0)


@KINDS
def test_classes_of_unequal_size(kind):
    """One example of one class, several of another; a batch of tasks is the tasks one by one."""
    learner, view = made(kind)
    keep = torch.tensor([0, 1, 2, 4])
    views = [
        mtl.fewshot.SupportView(
            view.features[t][:, keep], [a[t][:, keep] for a in view.activations], view.labels[t][:, keep], view.ways
        )
        for t in (slice(0, 2), slice(1, 2))
    ]
    both, second = (learner.generator.init(learner.generator(v)) for v in views)
    assert all(v.isfinite().all() for v in both.values())
    assert all(torch.allclose(v[1:], second[k], atol=1e-5) for k, v in both.items())


def test_low_precision_does_not_reach_the_generator():
    """Under autocast, and from features in bfloat16, what it emits is float32."""
    learner, view = made(mtl.SupportConditioned)
    expected = learner.generator(view)
    low = mtl.fewshot.SupportView(
        view.features.bfloat16(), [a.bfloat16() for a in view.activations], view.labels, view.ways
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(v, expected[k]) for k, v in learner.generator(view).items())
        assert {v.dtype for v in learner.generator(low).values()} == {torch.float32}
