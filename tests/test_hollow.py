"""Tensors without values: they take the bytes and the paths of those of the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mtl.metagrad.tensors import has_values
from mtl.planning.hollow import Hollow
from mtl.tools.memory import LiveBytes


def attended(inputs: Tensor, weight: Tensor) -> Tensor:
    x = F.gelu(F.linear(inputs, weight)).unflatten(-1, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(x, x, x).square().sum()


def peak_of_a_gradient(precision: torch.dtype | None, twice: bool = False) -> int:
    inputs, weight = torch.zeros(3, 7, 8), torch.zeros(8, 8).requires_grad_()
    with LiveBytes([inputs, weight]) as counter, torch.autocast("cpu", precision, enabled=precision is not None):
        if twice:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                (first,) = torch.autograd.grad(attended(inputs, weight), weight, create_graph=True)
            torch.autograd.grad(first.square().sum(), weight)
        else:
            torch.autograd.grad(attended(inputs, weight), weight)
    return counter.peak


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("twice", [False, True])
def test_bytes_are_those_of_real_tensors(precision, twice):
    with Hollow():
        hollow = [peak_of_a_gradient(precision, twice) for _ in range(2)]  # the second time from the table
    assert hollow == [peak_of_a_gradient(precision, twice)] * 2


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_keep_their_layout(groups, last):
    def strides() -> list[tuple[int, ...]]:
        images = torch.zeros(2, 5, 6, 4).permute(0, 3, 1, 2) if last else torch.zeros(2, 4, 5, 6)
        weight, bias = torch.zeros(8, 4 // groups, 3, 3).requires_grad_(), torch.zeros(8)
        found = F.conv2d(images.requires_grad_(), weight, bias, groups=groups)
        return [found.stride(), *(g.stride() for g in torch.autograd.grad(found.square().sum(), (images, weight)))]

    with Hollow():
        hollow = strides()
    assert hollow == strides()


def test_frozen_batch_norm_keeps_no_statistics():
    def peak() -> int:
        images, mean = torch.zeros(2, 40, 1, 1).requires_grad_(), torch.zeros(40)
        with LiveBytes([images, mean]) as counter:
            torch.autograd.grad(F.batch_norm(images, mean, mean).sum(), images)
        return counter.peak

    with Hollow():
        hollow = peak()
    assert hollow == peak()


def test_forward_mode_derivatives():
    with Hollow(), forward_ad.dual_level():
        weight = forward_ad.make_dual(torch.zeros(8, 8), torch.ones(8, 8))
        loss = F.gelu(F.linear(torch.zeros(3, 8), weight[:, :8])).sum()
        tangent = forward_ad.unpack_dual(loss).tangent
        assert tangent is not None
        assert tangent.shape == ()


def test_views_share_their_storage():
    with Hollow(), LiveBytes() as counter:
        whole = torch.zeros(4, 5)
        part = whole[1:].t().detach()
        part.add_(1)
    assert counter.now == counter.peak == 80
    assert part.untyped_storage()._cdata == whole.untyped_storage()._cdata


def test_only_numbers_that_are_written_down_can_be_read():
    with Hollow():
        assert torch.tensor(3.0).item() == 3
        computed = torch.zeros(2).sum()
        assert not has_values(computed)
        with pytest.raises(RuntimeError):
            computed.item()
    assert computed.device.type == "cpu"
    with pytest.raises(RuntimeError, match="has no values"):
        computed.add_(1)


def test_equal_arguments_of_other_types_are_told_apart():
    with Hollow():
        counts = torch.zeros(3, dtype=torch.long)
        assert [(counts * n).dtype for n in (2, 2.0, True)] == [torch.int64, torch.float32, torch.int64]
