"""The examples of a task as a file, to go on another day."""

from __future__ import annotations

import pytest
import torch
from test_living import ITEMS, assert_same, learner_of, shades
from tiny import backbone

import mtl
from mtl.fewshot import ready


@pytest.mark.parametrize("unlabelled", [None, shades(60, 9)])
def test_another_day(tmp_path, monkeypatch, unlabelled):
    monkeypatch.setattr(ready, "ASSETS", tmp_path)
    mtl.fewshot.save_ready(learner_of("readout"), tmp_path / "universal")
    b = backbone(sites="none", levels="all")
    adapted = mtl.adapt(b, ITEMS, unlabelled)
    adapted.save_examples(tmp_path / "lids.examples")
    adapted.save_examples(tmp_path / "lids.examples")  # again
    passed: list[int] = []
    examples = mtl.load_examples(tmp_path / "lids.examples", b)
    handle = b.model.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    again = mtl.adapt(b, examples)
    assert not passed
    more = again.add({"white": shades(190, 2)})
    assert sum(passed) == 2
    handle.remove()
    assert_same(again, adapted)
    assert_same(more, adapted.add({"white": shades(190, 2)}))
    assert more.examples == {"dark": 4, "mid": 3, "light": 3, "white": 2}


def test_of_a_trained_generator_and_of_numbered_classes(tmp_path):
    learner = learner_of("readout")
    labels = torch.tensor([[1, 0, 1, 0]])
    adapted = learner.adapt(mtl.Examples(learner.backbone.example_inputs(4).unflatten(1), labels))
    adapted.save_examples(tmp_path / "x")
    again = learner.adapt(mtl.load_examples(tmp_path / "x", learner.backbone))
    assert_same(again, adapted)
    assert again.examples == {0: 2, 1: 2}


def test_what_cannot_be_kept_or_loaded_is_said_in_one_line(tmp_path):
    learner = learner_of("readout")
    adapted = learner.adapt(ITEMS)
    adapted.save_examples(tmp_path / "x")
    with pytest.raises(ValueError, match=r"^examples on .* cannot be kept in a file: its layers are modulated"):
        learner_of("sites").adapt(ITEMS).save_examples(tmp_path / "y")
    with pytest.raises(ValueError, match=r"^class None cannot be kept in a file; expected names that are strings or"):
        learner.adapt({None: shades(5, 2), "a": shades(100, 2)}).save_examples(tmp_path / "y")
    adapted.save(tmp_path / "task.mtl")
    with pytest.raises(FileExistsError, match="holds no examples, and would be replaced"):
        adapted.save_examples(tmp_path / "task.mtl")
    with pytest.raises(ValueError, match=r"task.mtl holds no examples, or is damaged; expected a file of adapted"):
        mtl.load_examples(tmp_path / "task.mtl", learner.backbone)
    with pytest.raises(ValueError, match=r"x is for the backbone .*differs from it"):
        mtl.load_examples(tmp_path / "x", backbone(sites="none", levels="all", depth=3))
    with pytest.raises(FileNotFoundError):
        mtl.load_examples(tmp_path / "nowhere", learner.backbone)
    contents = bytearray((tmp_path / "x").read_bytes())
    contents[-3] ^= 1
    (tmp_path / "x").write_bytes(contents)
    with pytest.raises(ValueError, match="x is damaged: its tensors differ"):
        mtl.load_examples(tmp_path / "x", learner.backbone)
    (tmp_path / "x").write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match="x holds no examples, or is damaged"):
        mtl.load_examples(tmp_path / "x", learner.backbone)
    assert not (tmp_path / "y").exists()
