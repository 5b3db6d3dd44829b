"""Sums over episodes of gradients and metrics: chunks and processes of any number add up to the same."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl.metagrad.tensors import Tensors


class Totals:
    """Sums over episodes, kept on the device until all processes have added theirs.

    ``max_rho`` is a maximum: each process has a place of its own for it, so that one sum brings all of them together.
    """

    NAMES = ("count", "skipped", "loss", "accuracy", "pulls", "past_cliff")

    def __init__(self, device: torch.device, process: int, processes: int) -> None:
        self.sums = torch.zeros(len(self.NAMES) + processes, device=device)
        self._worst = self.sums[len(self.NAMES) + process]

    def skip(self) -> None:
        self.sums[1] += 1

    def add(self, losses: Tensor, accuracy: Tensor, diagnostics: dict[str, Tensor], pulls: int) -> None:
        n = len(losses)
        rho, past = (diagnostics.get(k, losses.new_zeros(())) for k in ("max_rho", "past_cliff"))
        count, pulled = losses.new_tensor(n), losses.new_tensor(n * pulls)
        added = torch.stack([count, 0 * count, losses.sum(), accuracy.sum(), pulled, n * past])
        self.sums[: len(added)] += added.to(self.sums)
        self._worst.copy_(torch.maximum(self._worst, rho.to(self._worst)))

    def means(self, count: float) -> dict[str, float]:
        values = self.sums.tolist()
        means = {name: v / count for name, v in zip(self.NAMES[2:], values[2 : len(self.NAMES)], strict=True)}
        return means | {"max_rho": max(values[len(self.NAMES) :])}


def backward(meta: Tensors, cotangents: Tensors, tasks: int) -> None:
    """One pass back through the generator, with the sum over tasks, not their mean: chunks of any size add up."""
    pairs = [(v, cotangents[k] * tasks) for k, v in meta.items() if v.requires_grad]
    torch.autograd.backward([v for v, _ in pairs], [c.to(v.dtype) for v, c in pairs])
