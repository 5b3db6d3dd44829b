"""A kind of data of one's own: a collection that says how to read its examples is all that episodes need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

import mtl
from mtl.data import AbstractCollection, InputCache


@dataclass(frozen=True, eq=False)
class Recordings(AbstractCollection):
    """Sounds, each a list of samples."""

    noun = "recordings"
    sounds: Sequence[list[float]]

    def read(self, positions: Sequence[int]) -> list[list[float]]:
        return [self.sounds[i] for i in positions]


def recordings() -> Recordings:
    return Recordings("a tape", {"low": (0, 1, 2), "high": (3, 4, 5)}, [[float(i), i + 0.5] for i in range(6)])


def preprocess(sounds: list[list[float]]) -> dict[str, torch.Tensor]:
    return {"wave": torch.tensor(sounds), "loudness": torch.tensor(sounds).abs().amax(1)}


def tasks(**options) -> mtl.ClassTasks:
    chosen = {"preprocess": preprocess, "ways": 2, "shots": 1, "queries": 2} | options
    return mtl.ClassTasks(recordings(), ["low", "high"], **chosen)


def test_episodes_hold_what_was_read():
    source = tasks()
    episode, draw = source.sample(3), source.draw(3)
    assert episode.families == ("recordings",)
    assert episode.support.inputs["wave"].shape == (1, 2, 2)
    assert episode.query.inputs["loudness"].tolist() == [[i + 0.5 for i in draw.query]]
    names, support, query = source.read(3)
    assert episode.support.inputs["wave"][0].tolist() == support
    assert episode.query.inputs["wave"][0].tolist() == query
    assert [name == "high" for name in names] == [i > 2 for i in draw.support]


def test_a_shared_cache_tells_collections_apart():
    cache = InputCache(preprocess)
    first, second = tasks(preprocess=cache), tasks(preprocess=cache)
    one = first.sample(0)
    second.collection.sounds[0][0] = -7.0
    two = second.sample(0)
    seen = torch.cat([e.inputs["wave"].flatten() for e in (two.support, two.query)])
    assert -7.0 in seen
    assert -7.0 not in torch.cat([e.inputs["wave"].flatten() for e in (one.support, one.query)])


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"preprocess turned 2 recordings into float32 \(1, 2\); expected tensors"):
        tasks(preprocess=lambda sounds: torch.tensor(sounds[:1])).sample(0)
