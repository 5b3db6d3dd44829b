"""Episodes of the Omniglot protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtl
from mtl.data.embedded.glyph_drawing import load_bank


def test_an_episode_is_a_function_of_seed_split_and_index():
    tasks = mtl.data.CharacterTasks("train", ways=3, shots=2, queries=4)
    first, again = tasks.sample(5), mtl.data.CharacterTasks("train", ways=3, shots=2, queries=4).sample(5)
    assert torch.equal(first.support.inputs.tensor, again.support.inputs.tensor)
    assert torch.equal(first.query.inputs.tensor, again.query.inputs.tensor)
    others = tasks.sample(6), mtl.data.CharacterTasks("train", ways=3, shots=2, queries=4, seed=1).sample(5)
    assert not any(torch.equal(first.support.inputs.tensor, o.support.inputs.tensor) for o in others)
    assert first.support.inputs.shape == (1, 6, 1, 28, 28)
    assert first.query.labels.tolist() == [[0] * 4 + [1] * 4 + [2] * 4]


def test_every_quarter_turn_of_a_readable_character_is_a_class():
    bank = load_bank("val")
    tasks = mtl.data.CharacterTasks("val")
    turns = np.bincount(tasks.classes[:, 0])
    assert turns.tolist() == [4 if o else 1 for o in bank.orientable]
    assert len(mtl.data.CharacterTasks("val", rotations=False).classes) == len(bank.orientable)
    assert {part: len(mtl.data.CharacterTasks(part).classes) for part in ("train", "val", "test")} == {
        "train": 320, "val": 218, "test": 604
    }  # fmt: skip


def test_labels_say_what_is_shown():
    """Class means of blurred images find the class far more often than chance, and not when labels are shuffled."""
    tasks, hits = mtl.data.CharacterTasks("test", ways=5, shots=5), []
    for i in range(12):
        e = tasks.sample(i)
        blur = lambda x: torch.nn.functional.avg_pool2d(x[0], 4).flatten(1)  # noqa: E731
        means = blur(e.support.inputs.tensor).view(5, 5, -1).mean(1)
        hits.append((torch.cdist(blur(e.query.inputs.tensor), means).argmin(1) == e.query.labels[0]).float().mean())
    assert torch.stack(hits).mean() > 0.6


def test_a_turned_class_is_the_turned_letter():
    """On average over typefaces: slants and the little angles of an image are symmetric."""
    tasks = mtl.data.CharacterTasks("train")
    upright = tasks.classes[tasks.classes[:, 1] == 0][5]
    rng = np.random.default_rng(0)
    shown = [tasks._images(np.tile([upright[0], turn], (200, 1)), rng).mean(0)[0] for turn in range(4)]
    for turn in range(4):
        distances = [(torch.rot90(shown[0], k) - shown[turn]).norm().item() for k in range(4)]
        assert int(np.argmin(distances)) == turn


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"ways=63: split 'val' has 62 classes.*or for rotations"):
        mtl.data.CharacterTasks("val", ways=63, rotations=False)
    with pytest.raises(ValueError, match="split='dev'"):
        mtl.data.CharacterTasks("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shots=0"):
        mtl.data.CharacterTasks("val", shots=0)
