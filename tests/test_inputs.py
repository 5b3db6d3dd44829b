"""One tensor and tensors by name are handled alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtl
from mtl import Inputs

PLAIN = torch.arange(24.0).view(2, 3, 4)
NAMED = {"input_ids": torch.arange(24).view(2, 3, 4), "weight": PLAIN[:, :, 0]}


@pytest.mark.parametrize("raw", [PLAIN, NAMED], ids=["plain", "named"])
def test_every_tensor_is_handled_as_it_would_be_alone(raw):
    inputs = Inputs.of(raw)
    assert Inputs.of(inputs) is inputs
    assert inputs.named == isinstance(raw, dict)
    chosen = torch.tensor([2, 0])

    def same(found: Inputs, of_each) -> None:
        expected = [of_each(v) for v in (raw.values() if isinstance(raw, dict) else [raw])]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    same(Inputs.of(inputs.raw), lambda v: v)
    same(inputs.take(chosen, 1), lambda v: v[:, chosen])
    same(inputs.flatten(), lambda v: v.flatten(0, 1))
    same(inputs.flatten().unflatten(2), lambda v: v)
    same(inputs.with_task_axis(), lambda v: v[None])
    same(Inputs.cat([inputs, inputs], 1), lambda v: torch.cat([v, v], 1))
    same(inputs.to("cpu", torch.float64), lambda v: v.double() if v.is_floating_point() else v)
    assert inputs.count == 2
    assert inputs.flatten().count == 6


def test_examples_take_raw_tensors_and_dicts():
    labels = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(mtl.Examples(PLAIN, labels).inputs.tensor, PLAIN)
    assert torch.equal(mtl.Examples(NAMED, labels).inputs["weight"], NAMED["weight"])
    with pytest.raises(ValueError, match="inputs are a list; expected a tensor, or a dict of tensors by name"):
        mtl.Examples([1, 2], labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs are tensors named input_ids, weight, expected a single one"):
        _ = mtl.Examples(NAMED, labels).inputs.tensor


def test_texts_are_padded_name_by_name():
    def tokens(length: int) -> dict[str, Tensor]:
        ones = torch.ones(1, 2, length, dtype=torch.int64)
        return {"input_ids": 7 * ones, "attention_mask": ones, "table": torch.ones(1, 2, 3, 5)}

    parts = Inputs.pad([Inputs.of(tokens(2)), Inputs.of(tokens(4))])
    assert parts[0]["input_ids"].tolist() == [[[7, 7, 0, 0]] * 2]
    assert parts[0]["attention_mask"].sum() == 4
    assert all(torch.equal(p["table"], torch.ones(1, 2, 3, 5)) for p in parts), "nothing but what differs in length"
