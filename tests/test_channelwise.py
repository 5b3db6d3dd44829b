"""The channel-wise generator: what it may depend on, a readout and its standardisation, and its static control."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import FeatureStatistics, SupportView
from mtl.fewshot.generators.channel_statistics import NO_EVIDENCE, channel_statistics, level_evidence
from mtl.fewshot.generators.standardising import Standardisation
from mtl.networks import Level, Modulation, Site

LEVELS = (Level("early", "grid", 0, 0.3, 8, 4), Level("late", "mean", 1, 0.7, 5), Level("last", "own", 2, 1.0, 6))
WIDTH = 19
SITES = (Site("a", 4, 1, ""), Site("b", 7, 1, ""))
UNEQUAL = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [2, 1, 0, 1, 1, 0, 2]])


def generator(sites=(), seed: int = 0, **options) -> mtl.ChannelWise:
    torch.manual_seed(seed)
    made = mtl.ChannelWise(sites, WIDTH, levels=LEVELS, **options)
    with torch.no_grad():  # away from the identity
        made.network.layers.get_parameter("3.weight").normal_()
    return made.double()


def view(labels=UNEQUAL, ways: int = 3, sites=(), seed: int = 0) -> SupportView:
    g = torch.Generator().manual_seed(seed)
    draw = lambda width: torch.randn(*labels.shape, width, generator=g, dtype=torch.float64)  # noqa: E731
    return SupportView(draw(WIDTH), [draw(s.width) for s in sites], labels, ways)


# --- what it reads ---------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_a_loop():
    values = view().features
    found = channel_statistics(values, UNEQUAL, 3)
    for t in range(2):
        classes = [values[t][UNEQUAL[t] == c] for c in range(3)]
        means = torch.stack([c.mean(0) for c in classes])
        between, total = means.var(0, unbiased=False), values[t].var(0, unbiased=False)
        within = torch.stack([c.var(0, unbiased=False) for c in classes]).mean(0)
        ratio = torch.log((between + 0.05) / (within + 0.05))
        spreads = [between.sqrt(), within.sqrt(), total.sqrt()]
        expected = torch.stack([means.mean(0).abs(), *spreads, ratio, (total + 0.05).log()], -1)
        torch.testing.assert_close(found[t], expected)


def test_evidence_is_the_loss_of_ridge_fitted_to_the_others():
    values = view().features
    found = level_evidence(values, UNEQUAL, 3, [8, 5, 6])
    head = mtl.CentredRidge(l2=0.1, scale=5)
    for i, level in enumerate(values.split([8, 5, 6], -1)):
        loss = torch.zeros(2, dtype=torch.float64)
        for left in range(7):
            rest = [j for j in range(7) if j != left]
            scores = head.logits(level[:, [left]], {}, (level[:, rest], UNEQUAL[:, rest]), 3)[:, 0]
            loss += torch.nn.functional.cross_entropy(scores, UNEQUAL[:, left], reduction="none") / 7
        torch.testing.assert_close(found[:, i, 0], loss / torch.tensor(3.0).double().log())


def test_evidence_is_a_constant_where_a_class_has_one_example():
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2]])
    found = level_evidence(view(labels).features, labels, 3, [8, 5, 6])
    assert (found[1, :, 0] == NO_EVIDENCE).all()
    assert (found[0, :, 0] != NO_EVIDENCE).all()


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [(), SITES], ids=["readout", "sites"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("standard", ["fixed", "support"])
def test_order_of_examples_and_numbering_of_classes_do_not_matter(sites, per_channel, standard):
    made, seen = generator(sites, per_channel=per_channel, standard=standard), view(sites=sites)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, 0, 1])[seen.labels]
    same = SupportView(seen.features[:, order], [a[:, order] for a in seen.activations], labels[:, order], 3)
    a, b = made(seen), made(same)
    for key, value in a.items():
        torch.testing.assert_close(value, b[key])
    c = made(replace(seen, labels=seen.labels[:, order]))
    assert not torch.allclose(a["scale"], c["scale"], atol=1e-3), "labels matter"


def renumbered(levels, seed: int = 3) -> torch.Tensor:
    """The channels of every stage in another order: the same one in all its levels, and the cells of each together."""
    orders: dict[int, torch.Tensor] = {}
    g, start, places = torch.Generator().manual_seed(seed), 0, []
    for level in levels:
        channels = level.width // level.cells
        order = orders.setdefault(level.stage, torch.randperm(channels, generator=g))
        places.append(start + (order[:, None] * level.cells + torch.arange(level.cells)).flatten())
        start += level.width
    return torch.cat(places)


@pytest.mark.parametrize("standard", ["fixed", "support"])
def test_channels_of_a_stage_may_be_numbered_anyhow(standard):
    """Channels in another order: what is emitted is in that order, and otherwise the same."""
    made, seen = generator(SITES, per_channel=False, standard=standard), view(sites=SITES)
    inner, own = renumbered([Level("", "own", 0, 1.0, 4), Level("", "own", 1, 1.0, 7)]), renumbered(LEVELS)
    activations = list(torch.cat(list(seen.activations), -1)[..., inner].split([4, 7], -1))
    permuted = made(SupportView(seen.features[..., own], activations, seen.labels, 3))
    emitted = made(seen)
    order = torch.cat([inner, 11 + own])
    for key in ("scale", "shift"):
        torch.testing.assert_close(permuted[key], emitted[key][:, order])
    torch.testing.assert_close(permuted["log_lr"], emitted["log_lr"])
    across = made(SupportView(seen.features.flip(-1), seen.activations, seen.labels, 3))
    assert not torch.allclose(across["scale"][:, 11:].flip(-1), emitted["scale"][:, 11:], atol=1e-3), "levels matter"


def test_levels_of_every_example_are_of_one_size():
    made, seen = generator(even=True), view()
    features = torch.tensor([1.0, 100.0]).double()[:, None, None] * seen.features
    made.standardise(FeatureStatistics.of_features(features, [8, 5, 6]))
    found = made.standard.before_scale(features, {})
    standardised = (features - made.standard.mean) * made.standard.inv_std
    for x, level in zip(found.split([8, 5, 6], -1), standardised.split([8, 5, 6], -1), strict=True):
        torch.testing.assert_close(x, level / (level.square().mean(-1, keepdim=True) + 0.25).sqrt())
    modulation = Modulation(torch.ones(2, WIDTH), torch.zeros(2, WIDTH))
    assert made.standard.fold(modulation, {}) is modulation


def test_levels_are_of_one_size_with_a_gradient_too():
    made, seen = generator(even=True), view()
    plain = made.standard.apply_to(seen.features, {})
    given = seen.features.clone().requires_grad_()
    torch.testing.assert_close(made.standard.apply_to(given, {}), plain)
    zeros = torch.zeros_like(seen.features).requires_grad_()
    (slope,) = torch.autograd.grad(made.standard.apply_to(zeros, {}).sum(), zeros, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), zeros)[0].isfinite().all(), "an example of nothing but zeros"


def test_standardising_leaves_the_features_as_they_are():
    for even in (True, False):
        made, seen = generator(even=even), view()
        before = seen.features.clone()
        made.standard.apply_to(seen.features, {})
        assert torch.equal(seen.features, before)


def test_training_leaves_out_the_common_scales_in_some_tasks_and_the_same_ones_again():
    made = generator()
    with torch.no_grad():
        made.common.base.normal_()
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]]).expand(200, -1)
    seen = view(labels)
    full, trained = made(seen), made.for_training(seen)
    without = made.rule(full)
    left_out = (trained["scale"] - without["scale"]).abs().amax(-1) < 1e-9
    assert 0.2 < left_out.double().mean() < 0.4
    torch.testing.assert_close(trained["scale"][~left_out], full["scale"][~left_out])
    torch.testing.assert_close(made.for_training(seen)["scale"], trained["scale"], rtol=0, atol=0)
    assert generator(per_channel=False).rule(full) is None


def test_numbers_of_one_channel_of_a_stage_are_read_together():
    """One channel's deviation stands for its mean too; another order in one of the two levels is another network."""
    levels = (Level("mean", "mean", 0, 1.0, 5), Level("std", "std", 0, 1.0, 5), Level("own", "own", 1, 1.0, 9))
    torch.manual_seed(0)
    made = mtl.ChannelWise((), WIDTH, levels=levels, per_channel=False).double()
    with torch.no_grad():
        made.network.layers.get_parameter("3.weight").normal_()
    seen, together = view(), renumbered(levels)
    alone = torch.cat([torch.arange(5), together[5:10], torch.arange(10, 19)])
    scales = made(seen)["scale"]
    for order, same in ((together, True), (alone, False)):
        found = made(replace(seen, features=seen.features[..., order]))["scale"]
        assert torch.allclose(found, scales[:, order], atol=1e-6) is same


def test_weights_that_belong_to_no_channel_fit_any_width():
    made = generator(per_channel=False)
    wider = (replace(LEVELS[0], width=64), Level("token", "token", 1, 0.9, 33), replace(LEVELS[2], width=100))
    other = mtl.ChannelWise((), 197, levels=wider, per_channel=False).double()
    state = {k: v for k, v in made.state_dict().items() if not k.startswith("standard.")}
    assert set(other.load_state_dict(state, strict=False).unexpected_keys) == set()
    features = torch.randn(2, 7, 197, dtype=torch.float64)
    assert other(SupportView(features, [], UNEQUAL, 3))["scale"].isfinite().all()
    # The same channels twice in every level: the same rule, twice.
    doubled = tuple(replace(level, width=2 * level.width) for level in LEVELS)
    twice = mtl.ChannelWise((), 2 * WIDTH, levels=doubled, per_channel=False).double()
    twice.load_state_dict(state, strict=False)
    seen = view()
    repeated = torch.cat([torch.cat([x, x], -1) for x in seen.features.split([8, 5, 6], -1)], -1)
    both = twice(replace(seen, features=repeated))["scale"].split([16, 10, 12], -1)
    once = made(seen)["scale"].split([8, 5, 6], -1)
    for a, b in zip(both, once, strict=True):
        torch.testing.assert_close(a, torch.cat([b, b], -1))


def test_tasks_of_a_batch_do_not_mix():
    made, seen = generator(SITES), view(sites=SITES)
    second = SupportView(seen.features[1:], [a[1:] for a in seen.activations], seen.labels[1:], 3)
    torch.testing.assert_close(made(seen)["scale"][1:], made(second)["scale"])


def test_the_size_of_a_site_does_not_matter():
    """Scales are the same, and shifts grow with the site."""
    made, seen = generator(SITES), view(sites=SITES)
    large = replace(seen, activations=[100 * a for a in seen.activations])
    torch.testing.assert_close(made(large)["scale"], made(seen)["scale"])
    torch.testing.assert_close(made(large)["shift"], 100 * made(seen)["shift"])
    assert (made(seen)["shift"][:, 11:] == 0).all()


# --- standardisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standard", ["fixed", "support"])
def test_standardising_is_folded_into_scale_and_shift(standard):
    made, seen = generator(SITES, standard=standard, even=False), view(sites=SITES)
    features = 3 + 10 * seen.features
    if standard == "fixed":
        made.standardise(FeatureStatistics.of_features(features, [8, 5, 6]))
    meta = made(replace(seen, features=features))
    weights = made.init(meta)
    modulation = made.modulation(weights, meta)
    raw = features * modulation.scale[:, None, 11:] + modulation.shift[:, None, 11:]
    standardised = made.standard.apply_to(features, meta)
    torch.testing.assert_close(raw, standardised * weights["scale"][:, None, 11:])
    assert torch.equal(modulation.scale[:, :11], weights["scale"][:, :11])
    assert standardised.mean((0, 1)).abs().max() < 1e-5
    assert 0.5 < standardised.std() < 2
    plain = made.modulation(made.init(made.identity(meta)), meta)
    torch.testing.assert_close(features * plain.scale[:, None, 11:] + plain.shift[:, None, 11:], standardised)


def test_a_generator_reads_standardised_features():
    """Features in other units, with statistics in those units: the same rule."""
    made, seen = generator(), view()
    made.standardise(FeatureStatistics.of_features(seen.features, [8, 5, 6]))
    expected = made(seen)["scale"]
    units = torch.rand(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    other = seen.features * units - 2
    assert not torch.allclose(made(replace(seen, features=other))["scale"], expected, atol=1e-2)
    made.standardise(FeatureStatistics.of_features(other, [8, 5, 6]))
    torch.testing.assert_close(made(replace(seen, features=other))["scale"], expected, atol=1e-4, rtol=1e-4)


def test_a_dead_channel_of_the_support_set_stays_finite():
    features = view().features
    features[..., 0] = 7  # dead in a level that is not
    features[..., 8:13] = 7  # a level that is dead
    made = Standardisation([8, 5, 6], "support").double()
    meta = made.of_tasks(features)
    assert made.apply_to(features + 1, meta).abs().max() < 100


def test_nothing_standardised_changes_nothing():
    made, modulation = Standardisation([8, 5, 6]), Modulation.identity(2, 20)
    assert made.fold(modulation, {}) is modulation
    with pytest.raises(ValueError, match="statistics of 3 features"):
        made.set(FeatureStatistics(torch.zeros(3), torch.ones(3)))
    with pytest.raises(ValueError, match="expected 'fixed'"):
        Standardisation([3], "batch")  # pyright: ignore


# --- with a learner --------------------------------------------------------------------------------------------------


def episodes(shots: int = 2) -> mtl.Episode:
    [(_, e)] = mtl.stack_by_shape([Blobs(shots=shots).sample(i) for i in range(2)])
    return e


def test_a_file_from_before_standardisation_loads(tmp_path):
    """Named as it was then, and without the statistics."""
    b, e = backbone(), episodes()
    torch.manual_seed(0)
    learner = mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16))
    mtl.save_pretrained(learner, tmp_path / "new")
    state = load_file(tmp_path / "new" / "generator.safetensors")
    save_file({k: v for k, v in state.items() if "standard" not in k}, tmp_path / "new" / "generator.safetensors")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["generator"]["kind"] == "dense"
    config["generator"]["kind"] = "conditioned"
    kept = {k: v for k, v in config.items() if k not in ("sha256", "digest")}  # which it did not have either
    (tmp_path / "new" / "config.json").write_text(json.dumps(kept))
    again = mtl.from_pretrained(tmp_path / "new", b)
    assert torch.equal(again.adapt(e.support).logits(e.query.inputs), learner.adapt(e.support).logits(e.query.inputs))


@pytest.mark.parametrize("kind", mtl.fewshot.GENERATORS)
def test_statistics_are_saved_with_the_generator(kind, tmp_path):
    b, e = backbone(), episodes()
    torch.manual_seed(0)
    learner = mtl.MetaLearner(b, mtl.fewshot.make_generator(kind, b), mtl.CentredRidge(), inner_steps=1)
    before = learner.adapt(e.support).logits(e.query.inputs)
    learner.generator.standardise(FeatureStatistics.of(b, [e.query.inputs]))
    expected = learner.adapt(e.support).logits(e.query.inputs)
    assert not torch.allclose(before, expected, atol=1e-3)
    mtl.save_pretrained(learner, tmp_path / "saved")
    found = mtl.from_pretrained(tmp_path / "saved").adapt(e.support).logits(e.query.inputs)
    assert torch.equal(found, expected)


def test_the_levels_of_another_backbone_are_refused():
    with pytest.raises(ValueError, match="levels are 19 wide together, but the features 24"):
        mtl.ChannelWise((), 24, levels=LEVELS)
