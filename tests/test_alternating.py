"""Several sources in turn, and what becomes of sources that no batch can hold together."""

from __future__ import annotations

import pytest
import torch

import mtl


class Words:
    """Tokens by name, of as many classes and examples as :class:`Pictures`."""

    def sample(self, index: int) -> mtl.Episode:
        examples = mtl.Examples({"input_ids": torch.full((1, 2, 3), index)}, torch.tensor([[0, 1]]))
        return mtl.Episode(examples, examples, 2)


class Pictures:
    def sample(self, index: int) -> mtl.Episode:
        examples = mtl.Examples(torch.full((1, 2, 3), float(index)), torch.tensor([[0, 1]]))
        return mtl.Episode(examples, examples, 2)


def test_blocks_take_turns():
    tasks = mtl.Alternating([Words(), Pictures()], block=2)
    assert [tasks.sample(i).support.inputs.named for i in range(6)] == [True, True, False, False, True, True]


def test_inputs_of_two_kinds_in_one_batch_are_refused_in_one_line():
    tasks = mtl.Alternating([Words(), Pictures()])
    expected = r"^episodes with different inputs \(input_ids and a plain tensor\) cannot be one batch: [^\n]+$"
    with pytest.raises(ValueError, match=expected):
        mtl.stack_by_shape([tasks.sample(i) for i in range(2)])
    [(places, _)] = mtl.stack_by_shape([tasks.sample(i) for i in (0, 2)])
    assert places == [0, 1], "of one kind they are a batch"


@pytest.mark.parametrize(
    ("sources", "block", "said"),
    [([], 1, r"sources=\[\]\): expected at least one"), ([Words()], 0, "block=0: expected an integer of at least 1")],
)
def test_impossible_turns_are_refused(sources, block, said):
    with pytest.raises(ValueError, match=said):
        mtl.Alternating(sources, block)
