"""Adapted tasks whose examples change: more of them, a new class, fewer; the same as adapting anew."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import networks
import pytest
import torch
from PIL import Image
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import ready


def shades(level: int, n: int) -> list[Image.Image]:
    return [Image.linear_gradient("L").point(lambda v, i=i: min(255, v // 4 + level + 3 * i)) for i in range(n)]


ITEMS = {"dark": shades(5, 4), "mid": shades(80, 3), "light": shades(150, 3)}
ASKED = shades(20, 2) + shades(90, 2) + shades(140, 2)


def moved(learner: mtl.MetaLearner) -> mtl.MetaLearner:
    """Away from the identity, so that the generator's answer depends on the examples."""
    torch.manual_seed(0)
    for name, p in learner.generator.named_parameters():
        p.data += 0.2 * torch.randn_like(p) if "log_lr" not in name else 0
    return learner


def learner_of(kind: str) -> mtl.MetaLearner:
    if kind == "readout":
        b = backbone(sites="none", levels="all")
        return moved(mtl.MetaLearner(b, mtl.fewshot.make_generator("channelwise", b, per_channel=False)))
    changes: dict[str, Any] = {"last_k": 1} if kind == "last block" else {}
    b = backbone(**changes)
    return moved(mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, 0.05), inner_steps=2))


def assert_same(found: mtl.Adapted, expected: mtl.Adapted) -> None:
    assert found.class_names == expected.class_names
    assert torch.equal(found.support.labels, expected.support.labels)
    inputs = found.model.backbone.preprocess(ASKED)[None]
    torch.testing.assert_close(found.logits(inputs), expected.logits(inputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.meta, expected.meta, rtol=1e-5, atol=1e-5)
    assert (found.choice is None) == (expected.choice is None)
    for mine, theirs in zip(found.calibrations, expected.calibrations, strict=True):
        assert mine.temperature == pytest.approx(theirs.temperature, rel=1e-3)
        assert mine.confidences == pytest.approx(theirs.confidences, rel=1e-3)
    if found.choice is not None and expected.choice is not None:
        torch.testing.assert_close(found.choice.weights, expected.choice.weights, rtol=1e-3, atol=1e-3)
        assert str(found.choice) == str(expected.choice)


def watch(network: mtl.Backbone) -> tuple[list[int], Any]:
    counts: list[int] = []
    return counts, network.model.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))


@pytest.mark.parametrize("cross_validate", [False, True])
@pytest.mark.parametrize("kind", ["readout", "sites", "last block"])
def test_adding_is_adapting_anew_to_all(kind, cross_validate):
    learner = learner_of(kind)
    adapt = lambda items: learner.adapt(items, cross_validate=cross_validate)  # noqa: E731
    first = {"dark": ITEMS["dark"][:2], "light": ITEMS["light"][:2]}
    before = adapt(first)
    more = {"light": ITEMS["light"][2:], "dark": ITEMS["dark"][2:], "mid": ITEMS["mid"]}
    found = before.add(more)
    assert_same(found, adapt({"dark": ITEMS["dark"], "light": ITEMS["light"], "mid": ITEMS["mid"]}))
    assert found.examples == {"dark": 4, "light": 3, "mid": 3}
    assert before.examples == {"dark": 2, "light": 2}, "the old one stays as it is"
    assert_same(before.add({"mid": ITEMS["mid"]}).add({"light": ITEMS["light"][2], "dark": ITEMS["dark"][2:]}), found)


@pytest.mark.parametrize("kind", ["readout", "sites", "last block"])
def test_dropping_is_adapting_anew_to_the_rest(kind):
    learner = learner_of(kind)
    adapted = learner.adapt(ITEMS, cross_validate=True)
    adapt = lambda items: learner.adapt(items, cross_validate=True)  # noqa: E731
    assert_same(adapted.drop("mid"), adapt({k: ITEMS[k] for k in ("dark", "light")}))
    assert_same(adapted.drop("dark"), adapt({k: ITEMS[k] for k in ("mid", "light")}))
    fewer = ITEMS | {"dark": [ITEMS["dark"][1]], "light": ITEMS["light"][1:]}
    assert_same(adapted.drop("dark", [0, -1, 2]).drop("light", 0), adapt(fewer))
    assert_same(adapted.drop("dark", [1]).add({"dark": ITEMS["dark"][1]}).drop("dark", -1), adapted.drop("dark", [1]))


def test_what_was_seen_does_not_pass_through_the_network_again():
    learner = learner_of("readout")
    adapted = learner.adapt(ITEMS, cross_validate=True)
    counts, handle = watch(learner.backbone)
    more = adapted.add({"dark": shades(9, 2), "white": shades(190, 3)})
    assert sum(counts) == 5
    more.drop("white").drop("dark", [0])
    assert sum(counts) == 5
    handle.remove()
    assert not adapted.support.inputs.named or set(adapted.support.inputs.tensors) == {"readout"}


def test_the_frozen_prefix_is_kept_where_layers_are_modulated():
    learner = learner_of("last block")
    adapted = learner.adapt(ITEMS, steps=0)
    first = learner.backbone.model.blocks[0].attn  # pyright: ignore[reportIndexIssue]
    counts: list[int] = []
    handle = first.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    more = adapted.add({"dark": shades(9, 2)})
    assert sum(counts) == 2
    handle.remove()
    again = pickle.loads(pickle.dumps(more)).add({"dark": shades(30, 1)})
    assert_same(again, more.add({"dark": shades(30, 1)}))


def test_steps_of_the_first_adaptation_count_again():
    learner = learner_of("sites")
    adapted = learner.adapt(ITEMS, steps=4)
    assert_same(adapted.drop("mid"), learner.adapt({k: ITEMS[k] for k in ("dark", "light")}, steps=4))
    calibrated = learner.adapt(ITEMS, calibrate=True)
    more = {"dark": shades(9, 1)}
    assert calibrated.add(more).calibrations
    assert_same(calibrated.add(more).drop("dark", -1), calibrated)
    learner.inner_steps = 0
    assert_same(adapted.drop("mid", 0).add({"mid": ITEMS["mid"][0]}).drop("mid", [-1]), adapted.drop("mid", 0))


def test_texts_grow_longer(tmp_path):
    b = networks.load("bert", tmp_path, last_k=1)
    learner = moved(mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, 0.05), inner_steps=1))

    def tokens(n: int, length: int, seed: int) -> mtl.Inputs:
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 50, (1, n, length), generator=g)
        return mtl.Inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    from mtl.fewshot import living

    for new_length in (5, 9):
        old, new = tokens(4, 7, 0), tokens(2, new_length, 1)
        adapted = learner.adapt(mtl.Examples(old, torch.tensor([[0, 1, 0, 1]])))
        support = adapted._support()
        assert support.prepared is not None
        padded = mtl.Inputs.pad([old, new])
        known = living._joined(b, support.prepared, *padded)
        assert (known is None) == (new_length > 7)
        if known is not None:
            everything = mtl.Inputs.cat(padded, 1)
            torch.testing.assert_close(b(known), b(everything))


def test_numbered_classes():
    learner, episode = learner_of("readout"), Blobs(ways=3, shots=2).sample(0)
    adapted = learner.adapt(mtl.Examples(episode.support.inputs.tensor.flip(1), episode.support.labels.flip(1)))
    assert adapted.examples == {0: 2, 1: 2, 2: 2}
    more = adapted.add({3: shades(5, 2), 0: shades(10, 1)})
    assert more.examples == {0: 3, 1: 2, 2: 2, 3: 2}
    assert more.class_names == ()
    assert more.drop(1).examples == {0: 3, 1: 2, 2: 2}
    with pytest.raises(ValueError, match=r"class 'new': this task was adapted to numbered classes, 0 to 2, and a new"):
        adapted.add({"new": shades(5, 2)})


def test_unlabelled_examples_count_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "ASSETS", tmp_path)
    mtl.fewshot.save_ready(learner_of("readout"), tmp_path / "universal")
    b = backbone(sites="none", levels="all", seed=3)
    for unlabelled in (None, shades(60, 9)):
        adapted = mtl.adapt(b, {"dark": ITEMS["dark"][:2], "light": ITEMS["light"]}, unlabelled)
        found = adapted.add({"dark": ITEMS["dark"][2:]})
        assert_same(found, mtl.adapt(b, {k: ITEMS[k] for k in ("dark", "light")}, unlabelled))
        seen = [*ITEMS["dark"], *ITEMS["light"], *(unlabelled or [])]
        torch.testing.assert_close(found.meta["standard_mean"], b(b.preprocess(seen)[None]).mean(1))


def test_errors_are_one_line():
    learner = learner_of("readout")
    adapted = learner.adapt(ITEMS)
    refused = {
        r"^there is no class 'drak'; did you mean 'dark'\?$": lambda: adapted.drop("drak"),
        r"^there is no class 'xyz'; there are 'dark', 'mid', 'light'$": lambda: adapted.drop("xyz"),
        r"^class 'mid' has no example 3; it has 3, 0 to 2$": lambda: adapted.drop("mid", [3]),
        r"^class 'mid' would be left without an example; drop the class with drop\('mid'\)$": lambda: adapted.drop(
            "mid", [0, 1, 2]
        ),
        r"^without 'dark' there would be 1 class; a task needs at least two$": lambda: adapted.drop("mid").drop("dark"),
        r"expected at least one class with an example each; got 1 classes, \['new'\] without any": lambda: adapted.add(
            {"new": []}
        ),
        r"^class 'new', item 0: ": lambda: adapted.add({"new": ["nowhere.png"]}),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="adapted from a given meta"):
        learner.adapt(ITEMS, meta=adapted.meta).drop("mid")


def test_copies_and_pickles_go_on():
    learner = learner_of("readout")
    adapted = learner.adapt(ITEMS, cross_validate=True)
    expected = adapted.add({"dark": shades(9, 2)})
    for again in (pickle.loads(pickle.dumps(adapted)), copy.deepcopy(adapted)):
        assert_same(again.add({"dark": shades(9, 2)}), expected)
    learner.adapt({k: ITEMS[k] for k in ("dark", "light")})
    size = len(pickle.dumps(adapted))
    learner.adapt({k: shades(9, 60) for k in ("a", "b")})
    assert len(pickle.dumps(adapted)) == size, "a task does not carry the last one of its learner"


@pytest.mark.parametrize("kind", ["readout", "sites", "last block"])
def test_one_task_of_a_batch(kind):
    learner = learner_of(kind)
    episode = mtl.Episode.stack([Blobs(shots=3).sample(i) for i in range(3)])
    batch = learner.adapt(episode.support, cross_validate=True)
    logits = batch.logits(episode.query.inputs)
    assert len(list(batch)) == 3
    for i, one in enumerate(batch):
        alone = learner.adapt(episode[i : i + 1].support, cross_validate=True)
        inputs = episode.query.inputs.map(lambda t, i=i: t[i : i + 1])
        torch.testing.assert_close(one.logits(inputs)[0], logits[i])
        torch.testing.assert_close(one.logits(inputs), alone.logits(inputs), rtol=1e-4, atol=1e-4)
        assert str(one.choice) == str(alone.choice)
        assert one.examples == {0: 3, 1: 3, 2: 3}
        torch.testing.assert_close(one.drop(1).logits(inputs), alone.drop(1).logits(inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"3 tasks were adapted to together; pick one, such as adapted\[0\]"):
        batch.drop(1)
    with pytest.raises(IndexError, match="there are tasks 0 to 2"):
        batch[3]


@pytest.mark.parametrize("name", ["dense", "static", "code", "channelwise"])
def test_what_a_generator_emits_for_one_task_of_a_batch(name):
    """With as many tasks as there are step sizes, or rows of a decoder."""
    b = backbone(last_k=1)
    generator = mtl.fewshot.make_generator(name, b)
    for tasks in (2, 2 * (len(b.sites) + 1) + 1):
        support = mtl.Episode.stack([Blobs().sample(i) for i in range(tasks)]).support
        learner = mtl.MetaLearner(b, generator, inner_steps=1)
        meta = generator(learner.view(support))
        one = generator.of_task(meta, 1, tasks)
        alone = generator(learner.view(support.map(lambda t: t[1:2])))
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-4)
