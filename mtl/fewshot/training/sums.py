"""Sums of metrics over episodes, the same for any number of chunks and processes."""

from __future__ import annotations

import torch

from mtl.fewshot.learner import MetaStep


class Totals:
    """Sums over episodes, kept on the device until the sums of all processes are added.

    ``max_rho`` is a maximum. Each process writes its own to a place of its own, so that one sum over processes collects
    them all.
    """

    NAMES = ("count", "skipped", "loss", "accuracy", "pulls", "past_cliff")

    def __init__(self, device: torch.device, process: int, processes: int) -> None:
        self.sums = torch.zeros(len(self.NAMES) + processes, device=device)
        self._worst = self.sums[len(self.NAMES) + process]

    def skip(self) -> None:
        self.sums[1] += 1

    def add(self, step: MetaStep) -> None:
        n = len(step.losses)
        rho, past = (step.diagnostics.get(k, step.losses.new_zeros(())) for k in ("max_rho", "past_cliff"))
        count, pulls = step.losses.new_tensor(n), step.losses.new_tensor(n * step.pulls)
        added = torch.stack([count, 0 * count, step.losses.sum(), step.accuracy.sum(), pulls, n * past])
        self.sums[: len(added)] += added.to(self.sums)
        self._worst.copy_(torch.maximum(self._worst, rho.to(self._worst)))

    def means(self, values: list[float]) -> dict[str, float]:
        """Means over the counted episodes, from the sums over all processes as Python numbers."""
        count = values[0]
        means = {name: v / count for name, v in zip(self.NAMES[2:], values[2 : len(self.NAMES)], strict=True)}
        return means | {"max_rho": max(values[len(self.NAMES) :])}
