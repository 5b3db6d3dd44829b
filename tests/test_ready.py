"""A generator put on a network that it has never seen, and adapting without any training."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
from PIL import Image
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import ready


def trained(path: Path, **options) -> mtl.MetaLearner:
    """A learner on a readout, away from the identity."""
    torch.manual_seed(0)
    b = backbone(sites="none", levels="all")
    learner = mtl.MetaLearner(b, mtl.fewshot.make_generator("channelwise", b, **options))
    for name, p in learner.generator.named_parameters():
        p.data += 0.2 * torch.randn_like(p) if "log_lr" not in name else 0
    mtl.save_pretrained(learner, path)
    return learner


@pytest.fixture
def universal(tmp_path, monkeypatch) -> mtl.MetaLearner:
    """Stands in for the generator of the package."""
    monkeypatch.setattr(ready, "ASSETS", tmp_path)
    learner = trained(tmp_path / "trained", per_channel=False)
    mtl.fewshot.save_ready(learner, tmp_path / "universal", {"networks": ["tiny"]})
    return learner


def episode() -> mtl.Episode:
    return Blobs(shots=3).sample(0)


def test_a_generator_goes_on_another_network(universal, tmp_path):
    other = backbone(sites="none", levels="all", depth=4, embed_dim=32)
    found = [mtl.load_generator(source, other) for source in ("mtl/universal", tmp_path / "trained")]
    for learner in found:
        own, state = universal.generator.state_dict(), learner.generator.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in state.items() if not k.startswith("standard."))
        assert learner.generator.levels == other.levels
        assert learner.generator.standard.source == "support"
        assert learner.inner_steps == 0
    logits = [learner.adapt(episode().support).logits(episode().query.inputs) for learner in found]
    assert torch.equal(*logits)
    mtl.save_pretrained(found[0], tmp_path / "there")
    again = mtl.from_pretrained(tmp_path / "there", other)
    assert torch.equal(again.adapt(episode().support).logits(episode().query.inputs), logits[0])


def test_it_goes_on_a_network_with_sites(universal):
    other = backbone(levels="all")
    logits = mtl.load_generator("mtl/universal", other).adapt(episode().support, steps=1).logits(episode().query.inputs)
    assert logits.isfinite().all()


def test_the_support_set_alone_gives_the_statistics_until_others_are_given(universal):
    other, e = backbone(sites="none", levels="all", seed=3), episode()
    learner = mtl.load_generator("mtl/universal", other)
    adapted = learner.adapt(e.support)
    _, inv_std = adapted.meta["standard_mean"], adapted.meta["standard_inv_std"]
    of_support = learner.generator.standard.of_examples(other(e.support.inputs)[0])
    torch.testing.assert_close(1 / inv_std[0], of_support.std)
    learner.generator.standardise(mtl.fewshot.FeatureStatistics.of(other, [e.query.inputs]))
    assert learner.generator.options["standard"] == "fixed"
    assert "standard_mean" not in learner.adapt(e.support).meta


def test_weights_that_belong_to_channels_stay_where_they_are(tmp_path):
    learner = trained(tmp_path / "trained")
    other = backbone(sites="none", levels="all", embed_dim=32)
    with pytest.raises(ValueError, match=r"belong to the channels of its own network; train ChannelWise with per_ch"):
        mtl.load_generator(tmp_path / "trained", other)
    with pytest.raises(ValueError, match="per_channel=False fits"):
        mtl.fewshot.save_ready(learner, tmp_path / "universal")
    with pytest.raises(FileNotFoundError, match="not a saved learner"):
        mtl.load_generator(tmp_path / "nowhere", other)


def shades(level: int, n: int) -> list[Image.Image]:
    return [Image.linear_gradient("L").point(lambda v, i=i: min(255, v // 4 + level + 3 * i)) for i in range(n)]


def test_adapt_by_class_name(universal):
    """Without any training, on a network that the generator has not seen."""
    b = mtl.load_backbone("test_resnet", pretrained=False, sites="none", levels="all", **networks.SMALL)
    colour = lambda images: [image.convert("RGB") for image in images]  # noqa: E731
    support = {"dark": colour(shades(5, 4)), "light": colour(shades(150, 3))}
    passed: list[int] = []
    handle = b.model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    for unlabelled in (None, colour(shades(8, 6) + shades(145, 6))):
        passed.clear()
        adapted = mtl.adapt(b, support, unlabelled, batch_size=5)
        assert sum(passed) == 7 + len(unlabelled or ()), "every item once"
        assert adapted.predict(colour(shades(20, 2) + shades(140, 2))) == ["dark", "dark", "light", "light"]
        assert adapted.choice is not None
        assert (adapted.choice.folds, adapted.choice.left_out) == (3, 6)
        assert "3 folds, 6 left-out examples" in str(adapted.choice)
    handle.remove()
    assert mtl.adapt(b, support, cross_validate=False).choice is None
    with pytest.raises(ValueError, match="at least two classes"):
        mtl.adapt(b, {"dark": support["dark"]})


def test_unlabelled_examples_say_how_far_features_vary(universal):
    b = backbone(sites="none", levels="all")
    support = {"dark": shades(5, 2), "light": shades(150, 2)}
    alone, more = mtl.adapt(b, support), mtl.adapt(b, support, shades(60, 9))
    everything = b.preprocess([*support["dark"], *support["light"], *shades(60, 9)])
    torch.testing.assert_close(more.meta["standard_mean"], b(everything[None]).mean(1))
    assert not torch.allclose(alone.meta["standard_mean"], more.meta["standard_mean"], atol=1e-3)


def test_a_mistyped_name_is_told_the_one_that_there_is(universal):
    with pytest.raises(FileNotFoundError, match=r"^mtl/universl does not come with mtl; expected mtl/universal, a"):
        mtl.load_generator("mtl/universl", backbone(sites="none", levels="all"))


def test_adapt_by_name(universal, monkeypatch):
    asked = {}

    def load(name, **options):
        asked[name] = options
        return backbone(sites="none", levels="all")

    monkeypatch.setattr(ready, "load_backbone", load)
    adapted = mtl.adapt("resnet18", {"dark": shades(5, 2), "light": shades(150, 2)})
    assert asked == {"resnet18": {"sites": "none", "levels": "all"}}
    assert len(adapted.predict(shades(30, 70))) == 70  # in more than one batch


def test_a_missing_asset_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match="mtl/universal is not in this installation"):
        mtl.load_generator("mtl/universal", backbone(sites="none", levels="all"))


def test_the_generator_that_comes_with_the_package_fits_a_network_it_has_not_seen():
    tasks = mtl.GlyphTasks("val", ways=5, shots=5, queries=6)
    episode = mtl.Episode.stack([tasks.sample(i) for i in range(8)])
    network = mtl.load_backbone("mtl/glyphs", sites="none", levels="all")
    learner = mtl.load_generator("mtl/universal", network)
    logits = learner.adapt(episode.support, cross_validate=True).logits(episode.query.inputs)
    assert logits.isfinite().all()
    right = (logits.argmax(-1) == episode.query.labels).float().mean()
    assert right > 0.5  # it is .2 by chance
    emitted = learner.generator(learner.view(episode.support))["scale"]
    assert (emitted.std(0) > 1e-3).any(), "it reads the task"
