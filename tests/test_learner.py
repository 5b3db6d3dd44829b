"""Heads, generators, the learner's meta-gradient, saving and exporting, on a tiny smooth network."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.heads import class_means


def episodes(n: int = 2, **options) -> mtl.Episode:
    [(_, e)] = mtl.stack_by_shape([Blobs(**options).sample(i) for i in range(n)])
    return e


def learner(
    kind: type = mtl.SupportConditioned, head: mtl.fewshot.AbstractHead | None = None, **options
) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    return mtl.MetaLearner(b, kind(b.sites, b.width), head, **options)


def emitted(made: mtl.MetaLearner, e: mtl.Episode) -> dict:
    return {k: v.detach() for k, v in made.generator(made.view(e.support)).items()}


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def support() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 7, 5, generator=g, dtype=torch.float64), torch.tensor([[0, 0, 0, 1, 1, 2, 2]] * 2)


@pytest.mark.parametrize("head", [mtl.Ridge(l2=0.3), mtl.NearestClassMean()], ids=repr)
def test_closed_form_heads_leave_one_out(head, support):
    features, labels = support
    fast = head.support_logits({}, support, 3)
    for i in range(labels.shape[1]):
        others = [j for j in range(labels.shape[1]) if j != i]
        slow = head.logits(features[:, [i]], {}, (features[:, others], labels[:, others]), 3)[:, 0]
        assert torch.allclose(fast[:, i], slow, atol=1e-10)


@pytest.mark.parametrize("head", [h() for h in mtl.fewshot.HEADS.values()], ids=repr)
def test_as_linear_predicts_the_same(head, support):
    asked = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = {k: v + 0.3 * torch.randn_like(v) for k, v in head.init(*support, 3).items()}
    weight, bias = head.as_linear(weights, support, 3)
    plain = asked @ weight.mT + bias.unsqueeze(1)
    assert torch.equal(plain.argmax(-1), head.logits(asked, weights, support, 3).argmax(-1))


def test_linear_starts_as_nearest_class_mean(support):
    asked = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head = mtl.Linear()
    nearest = torch.cdist(asked, class_means(*support, 3)).argmin(-1)
    assert torch.equal(head.logits(asked, head.init(*support, 3), support, 3).argmax(-1), nearest)


# --- generators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)
def test_generators_start_near_the_identity_and_can_leave_it(kind):
    made, e = learner(kind), episodes()
    meta = made.generator(made.view(e.support))
    modulation = made.generator.modulation(made.generator.init(meta), meta)
    assert (modulation.scale - 1).abs().max() < 0.1
    assert modulation.shift.abs().max() < 0.1
    result = made.meta_gradient(e, {k: v.detach() for k, v in meta.items()})
    torch.autograd.backward(
        [v for v in meta.values() if v.requires_grad], [result.grads[k] for k, v in meta.items() if v.requires_grad]
    )
    dead = [n for n, p in made.generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_conditioning_ignores_order_and_numbering():
    made, e = learner(), episodes(shots=3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    renumbered = torch.tensor([2, 0, 1])[e.support.labels]
    same = mtl.Examples(e.support.inputs.take(order, 1), renumbered[:, order])
    a, b = (made.generator(made.view(s)) for s in (e.support, same))
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    regrouped = mtl.Examples(e.support.inputs, e.support.labels[:, order])
    c = made.generator(made.view(regrouped))
    assert not torch.allclose(a["scale"], c["scale"], atol=1e-5), "labels matter"


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (7, 1), (3, 5)])
def test_any_ways_and_shots(ways, shots):
    made, e = learner(), episodes(ways=ways, shots=shots)
    predicted = made.adapt(e.support).predict(e.query.inputs)
    assert predicted.shape == e.query.labels.shape
    assert predicted.max() < ways


# --- the whole learner -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)
@pytest.mark.parametrize("head", [mtl.Cosine(), mtl.Ridge()], ids=repr)
def test_meta_gradient_is_exact_through_a_frozen_network(kind, head):
    made = learner(kind, head, inner_steps=3)
    made.backbone.double(), made.generator.double()
    e = episodes().map(lambda t: t.double() if t.is_floating_point() else t)
    meta, problem = emitted(made, e), made.problem(e)
    exact = mtl.Exact()(problem, meta)
    for estimator in (mtl.Rematerialised(), mtl.Windowed(window=1)):
        found = estimator(problem, meta)
        assert all(torch.allclose(found.grads[k], v, rtol=1e-8, atol=1e-12) for k, v in exact.grads.items())
    key, h = "base" if kind is mtl.TaskCode else "scale", 1e-6
    at = exact.grads[key].abs().flatten().argmax()
    step = torch.zeros(meta[key].numel(), dtype=torch.float64).index_fill(0, at, h).view_as(meta[key])
    up, down = (mtl.Exact()(problem, meta | {key: meta[key] + s * step}).loss for s in (1, -1))
    assert exact.grads[key].flatten()[at].item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-5)


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)
def test_meta_steps_add_up_to_the_gradient_of_the_mean_loss(kind):
    """One step on a batch is the weighted steps on its parts, and the meta-gradient through the generator's graph."""
    # adaptive windows are as long as the batch as a whole allows: exact only in every step
    made, e = learner(kind, inner_steps=2, estimator=mtl.Rematerialised()), episodes(3)
    step = made.meta_step(e)
    whole = {n: p.grad.clone() for n, p in made.generator.named_parameters()}
    assert step.finite
    adapted = made.adapt(e.support)
    assert torch.equal(step.accuracy, (adapted.predict(e.query.inputs) == e.query.labels).float().mean(1))
    assert torch.allclose(step.losses, made.problem(e).outer_loss(adapted.weights, adapted.meta), rtol=1e-4)

    meta = made.generator(made.view(e.support))
    result = made.meta_gradient(e, {k: v.detach() for k, v in meta.items()})
    sum((v * result.grads[k]).sum() for k, v in meta.items()).backward()  # on top of what is there
    for name, p in made.generator.named_parameters():
        assert torch.allclose(p.grad, 2 * whole[name], rtol=1e-4, atol=1e-6), name

    made.generator.zero_grad()
    for part in (e[:1], e[1:]):
        made.meta_step(part, weight=part.tasks / 3)
    for name, p in made.generator.named_parameters():
        assert torch.allclose(p.grad, whole[name], rtol=1e-3, atol=1e-4 * float(whole[name].abs().max())), name


@pytest.mark.parametrize("head", [mtl.CentredRidge(), mtl.fewshot.Linear(), mtl.Cosine()], ids=repr)
def test_an_outer_step_on_a_readout_has_the_gradient_of_plain_predictions(head):
    torch.manual_seed(0)
    b, e = backbone(levels="all", sites="none"), episodes(2)
    made = mtl.MetaLearner(b, head=head, inner_steps=1)
    made.generator.standardise(mtl.fewshot.FeatureStatistics.of_tasks(b, Blobs(), 4))
    meta = {k: v + 0.1 * torch.rand_like(v) for k, v in emitted(made, e).items()}
    found = made.meta_gradient(e, meta)

    def plainly(*args) -> torch.Tensor:
        return mtl.fewshot.model.TaskModel.query_logits(made.model, *args)

    object.__setattr__(made.model, "outer_logits", plainly)
    expected = made.meta_gradient(e, meta)
    torch.testing.assert_close(found.losses, expected.losses)
    for name, value in expected.grads.items():
        torch.testing.assert_close(found.grads[name], value, rtol=1e-4, atol=1e-6)


def test_a_meta_step_that_is_not_finite_adds_nothing():
    made, e = learner(inner_steps=2), episodes(2)
    made.meta_step(e)
    before = {n: p.grad.clone() for n, p in made.generator.named_parameters()}
    step = made.meta_step(episodes(2, poisoned=(1,)))
    assert not step.finite
    assert step.losses.isnan().tolist() == [False, True]
    assert all(torch.equal(p.grad, before[n]) for n, p in made.generator.named_parameters())


def test_a_batch_of_tasks_is_the_tasks_one_by_one():
    made, e = learner(inner_steps=4), episodes(3)
    together = made.adapt(e.support).logits(e.query.inputs)
    for t in range(3):
        alone = made.adapt(e[t : t + 1].support).logits(e[t : t + 1].query.inputs)
        assert torch.allclose(alone[0], together[t], atol=1e-3)


def test_adapting_lowers_the_support_loss_and_leaves_no_graph():
    made, e = learner(mtl.Static, inner_steps=20), episodes()
    problem = made.problem(e)
    start, end = (made.adapt(e.support, steps=s) for s in (0, 20))
    before, after = (problem.inner_loss(a.weights, a.meta, 0) for a in (start, end))
    assert (after < before).all()
    assert not any(v.requires_grad for v in (end.weights | end.meta).values())


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)
def test_what_is_adapted_stays_while_the_generator_trains_on(kind):
    made, e = learner(kind, inner_steps=1), episodes()
    adapted = made.adapt(e.support)
    before = adapted.logits(e.query.inputs)
    with torch.no_grad():
        for p in made.generator.parameters():
            p.add_(0.3)
    assert torch.equal(adapted.logits(e.query.inputs), before)


@pytest.mark.parametrize("head", [h() for h in mtl.fewshot.HEADS.values()], ids=repr)
@pytest.mark.parametrize("steps", [0, 2])
def test_classes_of_unequal_size(head, steps):
    """Any order of the examples, one example of a class, and no inner step."""
    made, e = learner(head=head, inner_steps=steps), episodes(shots=4)
    few = [[0, 1, 2, 3, 5, 8], [8, 3, 1, 0, 5, 2]]
    logits = [
        made.adapt(mtl.Examples(e.support.inputs.tensor[:, i], e.support.labels[:, i])).logits(e.query.inputs)
        for i in few
    ]
    assert torch.allclose(*logits, atol=1e-3)
    assert logits[0].isfinite().all()


def test_support_without_some_class_is_refused():
    made, e = learner(), episodes(shots=1)
    with pytest.raises(ValueError, match="task 1 has no example of class 2"):
        made.adapt(mtl.Examples(e.support.inputs, torch.tensor([[0, 1, 2], [0, 1, 1]])))
    with pytest.raises(ValueError, match="at least two classes"):
        made.adapt(mtl.Examples(e.support.inputs, torch.zeros(2, 3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="2 were adapted to"):
        made.adapt(e.support).predict([Image.new("L", (16, 16))])


def test_images_by_class_name():
    made = learner()
    images = {"dark": [Image.new("L", (20, 20), 10)] * 2, "light": [Image.new("L", (30, 16), 240)]}
    made.adapt(images)
    assert made.predict([Image.new("L", (16, 16), 20), Image.new("L", (16, 16), 230)]) == ["dark", "light"]
    with pytest.raises(ValueError, match=r"two classes.*'b'"):
        made.adapt({"a": images["dark"], "b": []})
    with pytest.raises(ValueError, match="adapt"):
        learner().predict([])


def test_generator_of_another_backbone_is_refused():
    b, other = backbone(), backbone(embed_dim=32)
    with pytest.raises(ValueError, match="make it with"):
        mtl.MetaLearner(b, mtl.Static(other.sites, other.width))


# --- saving and exporting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS.values(), ids=mtl.fewshot.GENERATORS)
def test_saved_learner_predicts_the_same(kind, tmp_path):
    made, e = learner(kind, mtl.Linear(), inner_steps=2), episodes()
    mtl.save_pretrained(made, tmp_path / "saved")
    again = mtl.from_pretrained(tmp_path / "saved")
    assert torch.equal(made.adapt(e.support).logits(e.query.inputs), again.adapt(e.support).logits(e.query.inputs))
    with pytest.raises(ValueError, match=r"is for the backbone"):
        mtl.from_pretrained(tmp_path / "saved", backbone(seed=1))
    mtl.save_pretrained(made, tmp_path / "saved")  # a saved learner may be replaced, other files may not
    (tmp_path / "saved" / "generator.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"generator\.safetensors"):
        mtl.from_pretrained(tmp_path / "saved")
    with pytest.raises(FileExistsError, match="save to a new folder"):
        mtl.save_pretrained(made, tmp_path / "saved")


@pytest.mark.parametrize(
    "optimizer",
    [
        mtl.InnerSGD(momentum=0.9, weight_decay=0.1),
        mtl.InnerSGD(clip=0.01),
        mtl.InnerAdam(betas=(0.5, 0.9)),
        mtl.metagrad.InnerNormalised(momentum=0.5, relative=True),
    ],
)
def test_the_inner_optimiser_is_used_and_saved(optimizer, tmp_path):
    made, plain, e = learner(inner_steps=2, optimizer=optimizer), learner(inner_steps=2), episodes()
    assert not torch.allclose(made.adapt(e.support).weights["scale"], plain.adapt(e.support).weights["scale"])
    mtl.save_pretrained(made, tmp_path / "saved")
    again = mtl.from_pretrained(tmp_path / "saved")
    assert type(again.optimizer) is type(optimizer)
    assert torch.equal(made.adapt(e.support).logits(e.query.inputs), again.adapt(e.support).logits(e.query.inputs))


@pytest.mark.parametrize("head", [h() for h in mtl.fewshot.HEADS.values()], ids=repr)
def test_exported_checkpoint_is_a_plain_timm_model(head, tmp_path):
    made, e = learner(head=head, inner_steps=3), episodes()
    adapted = made.adapt(e.support)
    exported = mtl.export(adapted, tmp_path / "out", task=1)
    assert exported.parity.agreeing == exported.parity.examples
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(plain(e.query.inputs.tensor[1]).argmax(-1), adapted.predict(e.query.inputs)[1])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 3
    with pytest.raises(FileExistsError):
        mtl.export(adapted, tmp_path / "out")
