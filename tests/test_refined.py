"""A rule that a long inner loop refines: its start, its steps on inner products alone, and what it is saved as."""

from __future__ import annotations

import pytest
import torch
from tiny import Blobs, backbone

import mtl
from mtl.fewshot.generators.refined import Refined
from mtl.metagrad import EmittedSGD, Exact, InnerSGD, Windowed, self_check

pytestmark = pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")


@pytest.fixture(scope="module")
def readout() -> mtl.Backbone:
    torch.manual_seed(0)
    return backbone(sites="none", levels="all")


def learner(b: mtl.Backbone, steps: int = 6, away: bool = True, **options) -> mtl.MetaLearner:
    """With rates and strengths that differ by task and level, where ``away`` from the start."""
    torch.manual_seed(1)
    made = mtl.MetaLearner(b, mtl.fewshot.make_generator("refined", b, **options), inner_steps=steps)
    if away:
        with torch.no_grad():
            for layers in (made.generator.rates.block, made.generator.rates.task):
                layers.get_parameter("2.weight").normal_(std=0.3)
    return made


def episodes(count: int = 2, **sizes) -> mtl.Episode:
    tasks = Blobs(**sizes)
    return mtl.Episode.stack([tasks.sample(i) for i in range(count)])


def of(b: mtl.Backbone, episode: mtl.Episode, **options):
    """A learner, what it emits, its problem, and the latter without inner products."""
    made = learner(b, **options)
    meta = {k: v.detach() for k, v in made.generator(made.view(episode.support)).items()}
    return made, meta, made.problem(episode)


def test_it_is_chosen_by_name_and_takes_fifty_steps_by_default(readout):
    made = mtl.MetaLearner(readout, mtl.fewshot.make_generator("refined", readout))
    assert made.inner_steps == 50
    assert isinstance(made.optimizer, EmittedSGD)
    assert made.model.adapted_values(3) == 2 * len(readout.levels)


def test_steps_on_inner_products_are_those_on_features(readout):
    episode = episodes(shots=3)
    made, meta, problem = of(readout, episode)
    bare = {k: v for k, v in meta.items() if k != "kernels"}
    found, expected = (mtl.metagrad.solve(problem, m)["strength"] for m in (meta, bare))
    assert found.abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-3)
    logits = made.model.support_logits
    prepared = readout.prepare(episode.support.inputs)
    both = [logits(prepared, episode.support.labels, 3, {"strength": found}, m) for m in (meta, bare)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)


def test_the_inner_loss_falls(readout):
    episode = episodes(shots=4)
    _, meta, problem = of(readout, episode, steps=20, away=False)
    weights = mtl.metagrad.solve(problem, meta)
    before, after = (problem.inner_loss(w, meta, 0) for w in (problem.init(meta), weights))
    assert (after < before).all()


def test_nothing_moves_where_a_class_has_one_example(readout):
    episode = episodes(shots=1)
    _, meta, problem = of(readout, episode)
    assert mtl.metagrad.solve(problem, meta)["strength"].abs().max() < 1e-6
    assert not (mtl.metagrad.solve(problem, meta | {"log_lr": torch.zeros_like(meta["log_lr"])})["strength"] == 0).all()


def test_windows_of_one_step_are_exact_and_all_of_it_is_trained(readout):
    episode = episodes(shots=3)
    made, meta, problem = of(readout, episode)
    check = self_check(Windowed(1), problem, meta, Exact())
    for name in ("strength", "log_lr", "logit_momentum", "log_decay", "kernels", "scale"):
        assert check.cosine[name] > 0.999
        assert check.norm_ratio[name] == pytest.approx(1, rel=1e-2)
    step = made.meta_step(episode)
    assert step.finite
    moved = {n for n, p in made.generator.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"rates.block.2.weight", "rates.task.2.weight", "rule.network.layers.3.weight", "rule.common.base"} <= moved


def test_it_starts_from_a_trained_rule(readout):
    torch.manual_seed(3)
    rule = mtl.fewshot.make_generator("channelwise", readout)
    with torch.no_grad():
        rule.network.layers.get_parameter("3.weight").normal_()
    made = learner(readout, away=False)
    made.generator.start_from(rule)
    view = made.view(episodes(shots=3).support)
    found, expected = made.generator(view), rule(view)
    weights = made.generator.init(found)
    scale = made.generator.modulation(weights, found).scale
    start = (expected["scale"].square() + torch.tensor(-4.0).exp()).sqrt()
    torch.testing.assert_close(scale, start, rtol=1e-2, atol=1e-3)


def test_cross_validation_can_stop_at_the_start(readout):
    episode = episodes(shots=3)
    made = learner(readout)
    meta = made.generator(made.view(episode.support))
    tried = {k: made.adapt(episode.support, meta=v) for k, v in made.generator.candidates(meta).items()}
    assert tried["start"].weights["strength"].abs().max() < 1e-6
    far = [tried[k].weights["strength"].abs().mean() for k in ("start", "short steps", "generator")]
    assert far == sorted(far)
    same = made.adapt(episode.support, steps=0).logits(episode.query.inputs)
    torch.testing.assert_close(tried["start"].logits(episode.query.inputs), same, rtol=1e-4, atol=1e-4)


def test_a_rule_that_is_kept_is_not_trained(readout):
    made, rule = learner(readout), mtl.fewshot.make_generator("channelwise", readout)
    made.generator.start_from(rule, keep=True)
    assert made.meta_step(episodes(shots=3)).finite
    moved = {n for n, p in made.generator.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith(("rates.", "step_sizes_of.")) for name in moved)


def test_the_identity_is_every_level_as_it_is(readout):
    episode = episodes(shots=3)
    made = learner(readout)
    meta = made.generator.identity(made.generator(made.view(episode.support)))
    found = made.adapt(episode.support, meta=meta).logits(episode.query.inputs)
    plain = mtl.MetaLearner(readout, mtl.fewshot.make_generator("static", readout))
    torch.testing.assert_close(found, plain.adapt(episode.support).logits(episode.query.inputs), rtol=1e-4, atol=1e-4)


def test_sites_inside_the_network_are_weighed_too():
    b = backbone(sites="norm", levels="all")
    episode = episodes(shots=2)
    made, meta, problem = of(b, episode, steps=2)
    assert "kernels" not in meta
    weights = mtl.metagrad.solve(problem, meta)
    assert weights["strength"][:, : len(b.sites)].abs().max() > 0
    assert made.adapt(episode.support).logits(episode.query.inputs).isfinite().all()


def test_a_saved_one_answers_alike_and_tasks_are_exported_and_judged(readout, tmp_path):
    made, task = learner(readout), episodes(1, shots=3)
    expected = made.adapt(task.support, cross_validate=True)
    mtl.save_pretrained(made, tmp_path / "saved")
    again = mtl.from_pretrained(tmp_path / "saved", readout)
    found = again.adapt(task.support, cross_validate=True)
    torch.testing.assert_close(found.logits(task.query.inputs), expected.logits(task.query.inputs))
    assert expected.choice is not None
    assert expected.choice.names == ("plain", "start", "short steps", "generator")
    batch = made.adapt(episodes(2, shots=3).support)
    torch.testing.assert_close(
        batch[1].logits(task.query.inputs), batch.logits(task.query.inputs.map(lambda v: v.repeat(2, 1, 1, 1, 1)))[1:]
    )


def test_emitted_momentum_and_decay_are_those_of_plain_descent():
    torch.manual_seed(0)
    w, gradient = {"w": torch.randn(2, 3)}, {"w": torch.randn(2, 3)}
    meta = {"logit_momentum": torch.tensor([0.9, 0.5]).logit(), "log_decay": torch.tensor(0.01).log()}
    ours, plain = EmittedSGD(0.1), [InnerSGD(0.1, momentum=m, weight_decay=0.1) for m in (0.9, 0.5)]
    moved, state = ours.update(w, ours.init(w), gradient, meta)
    moved, _ = ours.update(moved, state, gradient, meta)
    step = [0.1 * gradient["w"][i] * (1 + (1 - 0.01) + m) for i, m in enumerate((0.9, 0.5))]
    torch.testing.assert_close(moved["w"], 0.99**2 * w["w"] - torch.stack(step))
    first, _ = ours.update(w, ours.init(w), gradient, meta)
    torch.testing.assert_close(first["w"], plain[0].update(w, plain[0].init(w), gradient, {})[0]["w"])


def test_momentum_that_nobody_emits_is_named():
    sgd = EmittedSGD(0.1)
    with pytest.raises(ValueError, match="meta has no 'log_decay': EmittedSGD expects"):
        sgd.update(w := {"w": torch.ones(1, 2)}, sgd.init(w), w, {"logit_momentum": torch.zeros(())})


def test_the_class_has_a_name():
    assert mtl.fewshot.GENERATORS["refined"] is Refined


def test_adam_takes_steps_of_the_sizes_that_it_emits(readout):
    episode, generator = episodes(shots=3), learner(readout, step_size=0.1).generator
    made = mtl.MetaLearner(readout, generator, inner_steps=4, optimizer=mtl.metagrad.InnerAdam(eps=1e-3))
    meta = {k: v.detach() for k, v in generator(made.view(episode.support)).items()}
    problem = made.problem(episode)
    check = self_check(Windowed(1), problem, meta, Exact())
    assert check.cosine["log_lr"] > 0.999
    longer = meta | {"log_lr": meta["log_lr"] + 1}
    near, far = (mtl.metagrad.solve(problem, m)["strength"].abs().mean() for m in (meta, longer))
    assert 0.05 < near < far
