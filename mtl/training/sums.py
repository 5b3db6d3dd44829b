"""Sums over episodes of gradients and metrics: chunks and processes of any number add up to the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mtl.tensors import Tensors


class Totals:
    """Sums over episodes, kept on the device until all processes have added theirs."""

    NAMES = ("count", "left_out", "loss", "accuracy", "pulls", "max_rho", "past_cliff")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), device=device)

    def leave_out(self) -> None:
        self.sums[1] += 1

    def add(self, losses: Tensor, accuracy: Tensor, diagnostics: dict[str, Tensor], pulls: int) -> None:
        n = len(losses)
        rho, past = (n * diagnostics.get(k, losses.new_zeros(())) for k in ("max_rho", "past_cliff"))
        count, pulled = losses.new_tensor(n), losses.new_tensor(n * pulls)
        self.sums += torch.stack([count, 0 * count, losses.sum(), accuracy.sum(), pulled, rho, past]).to(self.sums)

    def means(self, count: float) -> dict[str, float]:
        return {name: value / count for name, value in zip(self.NAMES[2:], self.sums.tolist()[2:], strict=True)}


def backward(meta: Tensors, cotangents: Tensors, tasks: int) -> None:
    """One pass back through the generator, with the sum over tasks, not their mean: chunks of any size add up."""
    pairs = [(v, cotangents[k] * tasks) for k, v in meta.items() if v.requires_grad]
    torch.autograd.backward([v for v, _ in pairs], [c.to(v.dtype) for v, c in pairs])


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no value holds a NaN or an infinity."""
    return bool(torch.stack([torch.isfinite(v).all() for v in values]).all())
