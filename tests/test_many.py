"""Adapting to many tasks in one call: each as if it were alone, items in full batches, failures named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from PIL import Image
from test_living import assert_same, learner_of, shades, watch
from tiny import backbone

import mtl
from mtl.fewshot import many, ready
from mtl.items import as_texts

FIVE = {"dark": shades(5, 2), "light": shades(150, 3)}


def tasks() -> dict[str, Any]:
    """Of equal sizes, of unequal ones, with classes of one example."""
    return {
        "lids": FIVE,
        "doors": {"near": shades(8, 2), "far": shades(140, 3)},
        "three": {"a": shades(5, 2), "b": shades(70, 2), "c": shades(160, 1)},
        "bolts": {"near": shades(18, 4), "far": shades(130, 1)},
        "wheels": {"old": shades(60, 2), "new": shades(120, 3)},
        "pairs": {"x": shades(3, 3), "y": shades(99, 3)},
    }


@pytest.mark.parametrize("cross_validate", [False, True])
@pytest.mark.parametrize("kind", ["readout", "sites", "last block"])
def test_each_is_as_if_it_were_alone(kind, cross_validate, monkeypatch):
    learner, given = learner_of(kind), tasks()
    for values in (2**25, 1):  # in few batches, and each alone
        monkeypatch.setattr(many, "_VALUES_PER_BATCH", values)
        found = learner.adapt_many(given, cross_validate=cross_validate, batch_size=4)
        assert list(found) == list(given)
        assert not found.failures
        for name, adapted in found.items():
            assert_same(adapted, learner.adapt(given[name], cross_validate=cross_validate))
            assert adapted.predict(given[name][next(iter(given[name]))])[0] in given[name]
    more = {"far": shades(150, 2), "else": shades(200, 2)}
    alone = learner.adapt(given["bolts"], cross_validate=cross_validate).add(more)
    assert_same(found["bolts"].add(more), alone)


def test_tasks_of_equal_sizes_are_adapted_to_together(monkeypatch):
    learner, sizes = learner_of("readout"), []
    emit = learner.generator.forward
    monkeypatch.setattr(learner.generator, "forward", lambda view: sizes.append(len(view.labels)) or emit(view))
    learner.adapt_many(tasks())
    assert sorted(sizes) == [1, 1, 4]
    sizes.clear()
    learner.adapt_many(dict.fromkeys("abcdefgh", FIVE))
    assert sizes == [8]


def test_batches_are_full_whatever_the_tasks():
    learner = learner_of("readout")
    counts, handle = watch(learner.backbone)
    learner.adapt_many(tasks(), batch_size=10)
    assert counts == [10, 10, 10, 1]
    counts.clear()
    shared = {"one": FIVE, "two": {"dim": FIVE["dark"], "bright": list(reversed(FIVE["light"]))}, "three": FIVE}
    found = learner.adapt_many(shared, batch_size=3)
    assert counts == [3, 2], "what tasks share passes once"
    handle.remove()
    for name, items in shared.items():
        assert_same(found[name], learner.adapt(items))


def folder_of(path: Path, classes: dict[str, list[Image.Image]]) -> Path:
    for name, images in classes.items():
        (path / name).mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(path / name / f"{i}.png")
    return path


def test_folders_and_shared_files(tmp_path):
    learner = learner_of("readout")
    for name in ("lids", "doors"):
        folder_of(tmp_path / "tasks" / name, tasks()[name])
    found = learner.adapt_many(tmp_path / "tasks")
    assert list(found) == ["doors", "lids"]
    assert_same(found["lids"], learner.adapt(tmp_path / "tasks" / "lids"))
    counts, handle = watch(learner.backbone)
    files = sorted((tmp_path / "tasks" / "lids").rglob("*.png"))
    one = {"dark": files[:2], "light": [str(f) for f in files[2:]]}
    two = {"dark": list(map(str, files[:2])), "light": files[2:]}
    assert_same(learner.adapt_many({"one": one, "two": two})["two"], found["lids"])
    assert counts[0] == 5, "a path is a path, as a string or not"
    handle.remove()


def test_a_collection_under_several_labels_passes_once(tmp_path):
    learner = learner_of("readout")
    collection = mtl.open_images(folder_of(tmp_path / "all", tasks()["three"]))
    places = [p for members in collection.items.values() for p in members]
    other = collection.select({"even": tuple(places[::2]), "odd": tuple(places[1::2])})
    counts, handle = watch(learner.backbone)
    found = learner.adapt_many({"classes": collection, "parity": other, "again": collection})
    assert counts == [5]
    handle.remove()
    assert_same(found["parity"], learner.adapt(other))


def test_what_fails_does_not_stop_the_others(tmp_path):
    learner, good = learner_of("readout"), tasks()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")

    def items():
        yield from shades(5, 2)
        raise OSError("the disk is gone")

    given = {
        "lids": good["lids"],
        "single": {"dark": shades(5, 2)},
        "broken": {"dark": [*shades(5, 1), broken], "light": shades(9, 2)},
        "shares it": {"light": shades(9, 2), "dark": [broken]},
        "empty": {"dark": shades(5, 2), "light": []},
        "nowhere": tmp_path / "nowhere",
        "wrong": 3,
        "gone": {"light": shades(9, 2), "dark": items()},
        "doors": good["doors"],
    }
    for size in (1, 3, 64):
        fresh = given | {"gone": {"light": shades(9, 2), "dark": items()}}
        with pytest.warns(UserWarning, match=r"^7 of 9 tasks were left out \('single': .*; and 4 more\); see failures"):
            found = learner.adapt_many(fresh, batch_size=size)
        assert list(found) == ["lids", "doors"]
        for name in found:
            assert_same(found[name], learner.adapt(good[name]))
        why = found.failures
        assert list(why) == ["single", "broken", "shares it", "empty", "nowhere", "wrong", "gone"]
        assert why["single"] == "a support set needs at least two classes with an example each; got 1 classes"
        assert why["broken"].startswith(f"class 'dark', item 1: {broken} cannot be decoded")
        assert why["shares it"].startswith(f"class 'dark', item 0: {broken} cannot be decoded")
        assert "['light'] without any" in why["empty"]
        assert "nowhere" in why["nowhere"]
        assert why["gone"] == "the disk is gone"
        assert not any("\n" in line for line in why.values())
        with pytest.raises(KeyError, match="task 'single' was not adapted to: a support set needs"):
            found["single"]
        with pytest.raises(KeyError, match="there is no task 'lid'; did you mean 'lids'"):
            found["lid"]
    with pytest.raises(ValueError, match=r"none of 1 tasks could be adapted to \('single': a support set"):
        learner.adapt_many({"single": given["single"]})
    for nothing, message in (({}, "no task was given"), (3, "got a int"), (tmp_path / "nowhere", "is no folder")):
        with pytest.raises(ValueError, match=message):
            learner.adapt_many(nothing)


def test_an_item_that_only_failed_tasks_wanted_is_read_for_a_later_one(tmp_path):
    """A task fails while an item that it shares with a later one is in the same batch."""
    learner, shared = learner_of("readout"), shades(70, 3)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given = {"bad": {"a": [broken], "b": shared}, "good": {"dark": shades(5, 4), "mid": shared}}
    for size in range(1, 9):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = learner.adapt_many(given, batch_size=size)
        assert list(found) == ["good"]
        assert_same(found["good"], learner.adapt(given["good"]))


def test_without_training(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "ASSETS", tmp_path)
    mtl.fewshot.save_ready(learner_of("readout"), tmp_path / "universal")
    b = backbone(sites="none", levels="all", seed=3)
    for unlabelled in (None, shades(60, 9)):
        found = mtl.adapt_many(b, tasks(), unlabelled)
        for name, items in tasks().items():
            assert_same(found[name], mtl.adapt(b, items, unlabelled))
    more = {"near": shades(20, 1)}
    assert_same(found["doors"].add(more), mtl.adapt(b, tasks()["doors"], unlabelled).add(more))


def test_each_is_saved_to_a_file_of_its_own(tmp_path):
    learner = learner_of("readout")
    found = learner.adapt_many(tasks())
    files = found.save(tmp_path / "new" / "adapted")
    assert [f.name for f in files] == [f"{name}.mtl" for name in tasks()]
    task = mtl.load_task(tmp_path / "new" / "adapted" / "lids.mtl", learner.backbone)
    assert task.predict(shades(20, 3)) == found["lids"].predict(shades(20, 3))
    odd = learner.adapt_many({"a": FIVE, "b/c": FIVE})
    with pytest.raises(ValueError, match="task 'b/c' cannot be a file of this name"):
        odd.save(tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_a_learner_does_not_remember_a_batch():
    learner = learner_of("readout")
    one = learner.adapt(FIVE)
    learner.adapt_many(tasks())
    assert learner.predict(shades(20, 1)) == one.predict(shades(20, 1))


@pytest.mark.parametrize("sites", ["norm", "none"])
def test_texts_of_all_lengths(tmp_path, sites):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)), *map(str, range(19))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    learner = mtl.MetaLearner(networks.build("bert", tmp_path, sites=sites))
    given = {
        "late": {"yes": ["a b c d e f", "g"], "no": ["h i"]},
        "lost": {"yes": ["a b c d e f g h", "g"], "no": "x"},
        "more": {"yes": ["a", "g"], "no": ["x"]},
    }
    found = learner.adapt_many(given, batch_size=2)
    asked = ["a b", "c d e f g", "x"]
    for name, items in given.items():
        expected = learner.adapt(items)
        torch.testing.assert_close(found[name].predict_proba(asked), expected.predict_proba(asked))
        more = {"no": ["d e f g h i j"], "maybe": ["k"]}
        everything = {"yes": items["yes"], "no": [*as_texts(items["no"]), *more["no"]], "maybe": more["maybe"]}
        torch.testing.assert_close(
            found[name].add(more).predict_proba(asked), learner.adapt(everything).predict_proba(asked)
        )
