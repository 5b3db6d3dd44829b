"""One adapted task as plain numbers and as a file: the answers of what it came from, on the same network alone."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import HEADS
from mtl.fewshot.task_files import HEADER, read_task_file

INSIDE = {"norm": {}, "readout": {"sites": "none", "levels": "all"}, "last": {"sites": "none"}}


def learner_on(b: mtl.Backbone, head: str | None = None, kind: str = "channelwise", steps: int | None = None):
    """A learner away from the identity."""
    torch.manual_seed(0)
    generator = mtl.fewshot.make_generator(kind, b)
    for name, p in generator.named_parameters():
        p.data += 0.2 * torch.randn_like(p) if "log_lr" not in name else 0
    return mtl.MetaLearner(b, generator, HEADS[head]() if head else None, inner_steps=steps)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("inside", sorted(INSIDE))
@pytest.mark.parametrize("cross_validate", [False, True])
def test_a_task_alone_and_its_file_answer_as_all_tasks_did(head, inside, cross_validate, tmp_path):
    b = backbone(**INSIDE[inside])
    learner = learner_on(b, head, steps=2)
    episode = mtl.Episode.stack([Blobs(shots=3).sample(i) for i in range(3)])
    adapted = learner.adapt(episode.support, cross_validate=cross_validate)
    expected = adapted.logits(episode.query.inputs)
    for t in range(3):
        task = adapted.task(t)
        inputs = episode.query.inputs.tensor[t]
        assert_close(task.logits(inputs), expected[t])
        task.save(tmp_path / "x.mtl")
        assert torch.equal(mtl.load_task(tmp_path / "x.mtl", b).logits(inputs), task.logits(inputs))


@pytest.mark.parametrize("kind", ["static", "dense", "code"])
def test_every_kind_of_generator(kind, tmp_path):
    b = backbone()
    adapted = learner_on(b, kind=kind).adapt(Blobs().sample(0).support)
    inputs = Blobs().sample(0).query.inputs
    assert_close(adapted.task().logits(inputs.tensor[0]), adapted.logits(inputs)[0])


def test_statistics_of_the_support_set_and_fixed_ones(tmp_path):
    b = backbone(sites="none", levels="all")
    for standard in ("support", "fixed"):
        torch.manual_seed(0)
        learner = mtl.MetaLearner(b, mtl.fewshot.make_generator("channelwise", b, standard=standard))
        if standard == "fixed":
            learner.generator.standardise(mtl.fewshot.FeatureStatistics.of_tasks(b, Blobs(), 3))
        for even in (True, False):
            learner.generator.standard.even = even
            episode = mtl.Episode.stack([Blobs(shots=3).sample(i) for i in range(2)])
            adapted = learner.adapt(episode.support)
            assert (adapted.task().standard is not None) == even
            assert_close(
                adapted.task(1).logits(episode.query.inputs.tensor[1]), adapted.logits(episode.query.inputs)[1]
            )


@pytest.fixture(scope="module")
def returns() -> mtl.Adapted:
    b = backbone(sites="none", levels="all")
    classes = {name: list(torch.rand(3, 1, 16, 16)) for name in ("scratch", "dent", "fine")}
    return learner_on(b).adapt(classes, cross_validate=True)


def test_items_in_and_names_out(returns, tmp_path):
    items = torch.rand(7, 1, 16, 16)
    returns.save(tmp_path / "returns.mtl")
    task = mtl.load_task(tmp_path / "returns.mtl")  # the network comes from the description
    assert task.backbone is not returns.model.backbone
    assert task.predict(items) == returns.predict(items)
    assert_close(task.predict_proba(items), returns.predict_proba(items))
    assert [a.label for a in task.predict_each(items)] == task.predict(items)
    assert task.facts["generator"] == "ChannelWise"
    assert abs(sum(task.facts["choice"].values()) - 1) < 1e-3
    assert task.predict([]) == []
    assert task.predict_proba([]).shape == (0, 3)


def test_half_of_the_size(returns, tmp_path):
    returns.save(tmp_path / "whole.mtl")
    returns.save(tmp_path / "half.mtl", half=True)
    header = 5000
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.mtl", "half.mtl")]
    assert sizes[0] == pytest.approx(4 * returns.task().values, abs=header)
    assert sizes[1] == pytest.approx(2 * returns.task().values, abs=header)
    inputs = torch.rand(5, 1, 16, 16)
    whole, half = (
        mtl.load_task(tmp_path / n, returns.model.backbone).logits(inputs) for n in ("whole.mtl", "half.mtl")
    )
    assert_close(half, whole, 3e-3)


def test_copies_pickles_and_saving_again(returns, tmp_path):
    inputs = torch.rand(4, 1, 16, 16)
    task = returns.task()
    for again in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert torch.equal(again.logits(inputs), task.logits(inputs))
    task.save(tmp_path / "a.mtl")
    mtl.load_task(tmp_path / "a.mtl", task.backbone).save(tmp_path / "b.mtl")
    assert (tmp_path / "a.mtl").read_bytes() == (tmp_path / "b.mtl").read_bytes()


@pytest.mark.parametrize("other", [{"seed": 1}, {"levels": "last"}, {"sites": "norm"}, {"depth": 3}])
def test_another_network_is_refused(other, returns, tmp_path):
    returns.save(tmp_path / "returns.mtl")
    with pytest.raises(ValueError, match=r"returns\.mtl is for the backbone .* differs from it"):
        mtl.load_task(tmp_path / "returns.mtl", backbone(**({"sites": "none", "levels": "all"} | other)))


def test_every_changed_byte_is_noticed(returns, tmp_path):
    path = tmp_path / "x.mtl"
    returns.save(path)
    whole = path.read_bytes()
    places = [0, 9, 40, len(whole) // 3, len(whole) // 2, len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.mtl"):
            mtl.load_task(path, returns.model.backbone)
    for size in (0, 5, 100, len(whole) - 4):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.mtl"):
            mtl.load_task(path, returns.model.backbone)


def rewritten(path: Path, change) -> None:
    """A file with another description, sealed anew, as somebody with bad intent would."""
    from mtl.tools.identity import digest

    file = path.read_bytes()
    size = int.from_bytes(file[:8], "little")
    content = json.loads(json.loads(file[8 : 8 + size])["__metadata__"][HEADER])
    del content["digest"]
    state = load(file)
    change(content, state)
    content["tensors"] = digest(state)
    path.write_bytes(save(state, {HEADER: json.dumps(content | {"digest": digest(content)})}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, s: c.update(format=2), "format 2"),
        (lambda c, s: c["task"].update(ways=4), "not those of 4 classes"),
        (lambda c, s: c["task"].update(class_names=["one"]), "class_names"),
        (lambda c, s: c["task"].update(parts=[]), "parts"),
        (lambda c, s: c["task"].update(parts=[{"unit": "yes"}]), r"parts\.0"),
        (lambda c, s: c["task"].pop("facts"), r"lacks 'task\.facts'"),
        (lambda c, s: s.pop("parts.0.bias"), r"parts\.0\.weight"),
        (lambda c, s: s.update({"parts.0.other": torch.ones(3)}), r"parts\.0\.other"),
        (lambda c, s: s.pop("standard.mean"), "standard"),
        (lambda c, s: c["backbone"]["load"].update(trust_remote_code=True), "trust_remote_code"),
    ],
)
def test_what_a_file_may_not_say(change, said, returns, tmp_path):
    path = tmp_path / "x.mtl"
    returns.save(path)
    rewritten(path, lambda content, state: None)
    mtl.load_task(path)  # sealing anew is not what is refused
    rewritten(path, change)
    with pytest.raises(ValueError, match=said):
        mtl.load_task(path)


def test_files_that_are_something_else(returns, tmp_path):
    mtl.save_pretrained(learner_on(returns.model.backbone), tmp_path / "learner")
    for path in (tmp_path / "learner" / "generator.safetensors", tmp_path / "learner" / "config.json"):
        with pytest.raises(ValueError, match="not an adapted task"):
            mtl.load_task(path)
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match="would be replaced"):
            returns.save(path)
        assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"nothing\.mtl"):
        mtl.load_task(tmp_path / "nothing.mtl")


def test_tasks_that_cannot_be_kept(returns, tmp_path):
    with pytest.raises(ValueError, match="task=1: there are tasks 0 to 0"):
        returns.save(tmp_path / "x.mtl", task=1)
    starts = tuple(replace(s, weights={k: v * torch.nan for k, v in s.weights.items()}) for s in returns.starts)
    broken = replace(returns, starts=starts)
    with pytest.raises(ValueError, match="not finite"):
        broken.save(tmp_path / "x.mtl")
    assert not (tmp_path / "x.mtl").exists()


def test_an_input_that_is_not_finite_is_named(returns):
    inputs = {"image": torch.rand(3, 1, 16, 16)}
    inputs["image"][1] = torch.nan
    with pytest.raises(ValueError, match="input 1 of task 0 holds NaN"):
        returns.task().predict(mtl.Inputs.of(inputs["image"]))


def test_the_description_names_no_folder_of_this_machine(returns, tmp_path):
    returns.save(tmp_path / "x.mtl")
    file = read_task_file(tmp_path / "x.mtl")
    assert str(tmp_path) not in json.dumps(file.backbone)
