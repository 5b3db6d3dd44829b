"""A kind of data of one's own: a collection that says how to read its examples is all that episodes need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mtl
from mtl.data import AbstractCollection, InputCache
from mtl.data.own.grouped_draws import separable


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


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_the_classes_an_episode_is_what_was_asked_for(data: st.DataObject):
    """Sizes, classes, sides and groups of a draw, from its number alone."""
    sizes = data.draw(st.lists(st.integers(3, 9), min_size=2, max_size=5), label="sizes of classes")
    ways = data.draw(st.integers(2, len(sizes)), label="ways")
    shots = data.draw(st.integers(1, min(sizes) - 1), label="shots")
    queries = data.draw(st.integers(1, min(sizes) - shots), label="queries")
    total = sum(sizes)
    group = st.integers(0, data.draw(st.integers(2, 2 * total), label="groups"))
    groups = data.draw(st.one_of(st.just([]), st.lists(group, min_size=total, max_size=total)), label="group of each")
    order = data.draw(st.permutations(range(total)), label="positions")
    items, first = {}, 0
    for c, size in enumerate(sizes):
        items[f"class {c}"], first = tuple(order[first : first + size]), first + size
    named = {i: f"group {g}" for i, g in enumerate(groups)}
    collection = Recordings("a tape", items, [[float(i), 0.0] for i in range(total)], groups=named)
    assume(all(separable(collection, name, shots, queries) for name in items))
    options = {"preprocess": preprocess, "ways": ways, "shots": shots, "queries": queries, "seed": 7}
    source, again = (mtl.ClassTasks(collection, list(items), **options) for _ in range(2))
    index = data.draw(st.integers(0, 2**40), label="index")
    try:
        draw = source.draw(index)
    except ValueError as error:  # classes that are separable one by one may not be together
        if groups and "in different groups; use fewer --ways, --shots or --queries" in str(error):
            return
        raise
    class_of = {i: name for name, places in items.items() for i in places}
    support, query = ([class_of[i] for i in side] for side in (draw.support, draw.query))
    assert len(set(draw.support + draw.query)) == ways * (shots + queries), "no example twice"
    assert len(set(support)) == ways
    assert support == [name for name in dict.fromkeys(support) for _ in range(shots)], "ordered by class"
    assert query == [name for name in dict.fromkeys(support) for _ in range(queries)], "in the same order"
    assert not groups or not {groups[i] for i in draw.support} & {groups[i] for i in draw.query}
    again.draw(index + 1)
    assert again.draw(index) == draw, "a function of the number alone"
