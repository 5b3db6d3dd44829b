"""Inner loops on readouts, for which every example passes through the network once.

The head is a softmax classifier on all features of the readout, its step sizes one for each feature. Gradient descent
on its weights moves its outputs by a kernel, so the loop is run on the outputs: the same numbers, at the cost of a
matrix as large as the support set in place of all features. ``on_weights`` is the same loop on the weights themselves.

The levels are those of :class:`mtl.fewshot.Refined`: how much each level of the readout counts in a ridge regression,
by gradient descent on the loss of each support example under a fit to all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.long_loops import AbstractBatch, AbstractPool, Loop, losses, noisy
from helpers.readouts import Network
from mtl.fewshot.generators.standardising import even
from mtl.fewshot.heads import leave_one_out
from mtl.metagrad import EmittedSGD, InnerProblem
from mtl.metagrad.emitted_sgd import DECAY, MOMENTUM
from mtl.metagrad.optimizers import AbstractInnerOptimizer
from mtl.metagrad.tensors import Tensors

L2 = 0.1  # of ridge regressions
STEP = "step"


@dataclass(frozen=True)
class Pool(AbstractPool):
    """Tasks as standardised readouts.

    Args:
        values: of support and query less the mean of the support, ``(tasks, n + m, D)`` float16.
        labels: ``(tasks, n + m)``.
        support: n.
        ways: number of classes.
        widths: of the levels.
        unseen: of every task, whether it is of a family that no training task is of.
    """

    values: Tensor
    labels: Tensor
    support: int
    ways: int
    widths: tuple[int, ...]
    unseen: tuple[bool, ...]

    @staticmethod
    def of(network: Network, part: str, shots: int, queries: int, count: int, noise: float = 0.0) -> Pool:
        """The first tasks of a part.

        Args:
            noise: share of the support labels that are replaced by another class.
        """
        tasks, values, labels, families = network.tasks(part, shots, queries), [], [], []
        widths = [level.width for level in network.backbone.levels]
        ways = network.divided.split.request.ways
        for i in range(count):
            episode = tasks.sample(i)
            seen, asked = (network.backbone.observe(p.inputs)[0][0] for p in (episode.support, episode.query))
            both = even(network.statistics.standardise(torch.cat([seen, asked]).float()), widths)
            values.append((both - both[: len(seen)].mean(0)).half())
            given = noisy(episode.support.labels[0], ways, noise, i)
            labels.append(torch.cat([given, episode.query.labels[0]]))
            families += episode.families or ("",)
        unseen = tuple(f in tasks.unseen for f in families)
        return Pool(torch.stack(values), torch.stack(labels), shots * ways, ways, tuple(widths), unseen)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, tasks: Tensor) -> Batch:
        return Batch(self.labels[tasks], self.support, self.ways, self.values[tasks].float(), self.widths)


@dataclass(frozen=True)
class Batch(AbstractBatch):
    """Some tasks of a pool; the fields are those of :class:`Pool`."""

    values: Tensor
    widths: tuple[int, ...]

    @property
    def seen(self) -> Tensor:
        return self.values[:, : self.support]

    @property
    def targets(self) -> Tensor:
        """Centred one-hot labels of the support set."""
        return F.one_hot(self.labels[:, : self.support], self.ways).to(self.values) - 1 / self.ways


@dataclass(frozen=True)
class OutputDescent(AbstractInnerOptimizer):
    """Gradient descent on the weights of a linear head, as it moves the outputs: by a kernel, from support to all."""

    def init(self, weights: Tensors) -> Tensors:
        outputs = weights["outputs"]
        return {"v": torch.zeros_like(outputs), STEP: outputs.new_zeros(len(outputs))}

    def update(self, weights: Tensors, state: Tensors, gradient: Tensors, meta: Tensors) -> tuple[Tensors, Tensors]:
        v = meta[MOMENTUM].sigmoid() * state["v"] + gradient["outputs"]
        step, n = state[STEP].detach(), meta["kernel"].shape[-1]
        size = meta["schedule"][step[0].long().clamp_max(len(meta["schedule"]) - 1)].exp()
        moved = (1 - meta[DECAY].exp()) * weights["outputs"] - size * (meta["kernel"] @ v[:, :n])
        return {"outputs": moved}, {"v": v, STEP: step + 1}


class Head(Loop[Batch]):
    """A softmax head on the whole readout, from zero or from class means.

    ``rates``: a log step size for each feature; ``level_rates``: for each level; ``schedule``: for each step;
    ``start``: log-strength of each level in the class means that it starts from; ``examples``: how the weight of a
    support example in the inner loss depends on how well the others predict its label; ``loss``: log-temperature and
    smoothing of the inner loss.
    """

    learnable = ("rates", "level_rates", "momentum", "decay", "schedule", "start", "examples", "loss")

    def initial(self, pool: Pool, steps: int) -> Tensors:
        levels = len(pool.widths)
        return {
            "rates": torch.zeros(sum(pool.widths)),
            "level_rates": torch.zeros(levels),
            "momentum": torch.tensor([math.log(9.0)]),
            "decay": torch.tensor([-8.0]),
            "schedule": torch.zeros(max(1, steps)),
            "start": torch.full((levels,), -3.0),
            "examples": torch.zeros(2),
            "loss": torch.tensor([0.0, -6.0]),
            "size": torch.zeros(1),
        }

    def emit(self, learned: Tensors, batch: Batch) -> Tensors:
        level = _level(batch)
        sizes = (learned["rates"] + learned["level_rates"][level] + learned["size"]).exp() / batch.values.shape[-1]
        means = learned["start"].exp()[level] / batch.values.shape[-1] / (batch.support / batch.ways)
        return {
            "kernel": (batch.values * sizes) @ batch.seen.mT,
            "start": (batch.values * means) @ (batch.seen.mT @ batch.targets),
            "weights": 2 * (learned["examples"] @ self._told(batch)).sigmoid(),
            MOMENTUM: learned["momentum"],
            DECAY: learned["decay"],
            "schedule": learned["schedule"],
            "loss": learned["loss"],
        }

    def problem(self, batch: Batch, steps: int) -> InnerProblem:
        n = batch.support

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            return self._inner(weights["outputs"][:, :n], meta, batch)

        def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
            return batch.loss(weights["outputs"][:, n:], slice(n, None))

        return InnerProblem(lambda meta: {"outputs": meta["start"]}, inner_loss, outer_loss, steps, OutputDescent())

    def on_weights(self, batch: Batch, steps: int) -> InnerProblem:
        """The same loop on the weights of the head, from zero; ``meta`` holds ``sizes`` in place of ``kernel``."""
        n = batch.support
        outputs = lambda w, part: batch.values[:, part] @ w["head"].mT  # noqa: E731

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            return self._inner(outputs(weights, slice(n)), meta, batch)

        def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
            return batch.loss(outputs(weights, slice(n, None)), slice(n, None))

        tasks, width = len(batch.values), batch.values.shape[-1]
        start = lambda meta: {"head": torch.zeros(tasks, batch.ways, width)}  # noqa: E731
        return InnerProblem(start, inner_loss, outer_loss, steps, EmittedSGD(lambda meta: meta["sizes"].exp()))

    def logits(self, weights: Tensors, meta: Tensors, batch: Batch) -> Tensor:
        return weights["outputs"][:, batch.support :]

    def _inner(self, outputs: Tensor, meta: Tensors, batch: Batch) -> Tensor:
        temperature, smoothing = meta["loss"][0].exp(), meta["loss"][1].sigmoid()
        outputs = outputs * temperature
        right = losses(outputs, batch.labels[:, : batch.support])
        even_ = -outputs.log_softmax(-1).mean(-1)
        # summed over examples and divided by their number: the gradient of each output is then that of its own loss
        return (((1 - smoothing) * right + smoothing * even_) * meta["weights"]).mean(1)

    def _told(self, batch: Batch) -> Tensor:
        """One, and by how much the label of each support example wins in a ridge regression fitted to the others."""
        kernel = batch.seen @ batch.seen.mT / batch.values.shape[-1]
        scores = leave_one_out(kernel, batch.targets, L2)
        given = batch.labels[:, : batch.support, None]
        others = scores.scatter(-1, given, -math.inf).amax(-1)
        margin = scores.gather(-1, given).squeeze(-1) - others
        return torch.stack([torch.ones_like(margin), margin], 1)


class Levels(Loop[Batch]):
    """How much each level counts. ``rates``: a log step size for each; ``start``: where its log-strength starts."""

    learnable = ("rates", "start", "momentum", "decay", "temperature")

    def initial(self, pool: Pool, steps: int) -> Tensors:
        levels = len(pool.widths)
        return {
            "rates": torch.zeros(levels),
            "start": torch.zeros(levels),
            "momentum": torch.zeros(1),
            "decay": torch.tensor([-7.0]),
            "temperature": torch.tensor([2.0]),
            "size": torch.zeros(1),
        }

    def emit(self, learned: Tensors, batch: Batch) -> Tensors:
        parts = batch.values.split(list(batch.widths), -1)
        kernels = torch.stack([x @ x[:, : batch.support].mT for x in parts], 1) / batch.values.shape[-1]
        names = {"momentum": MOMENTUM, "decay": DECAY, "start": "start", "temperature": "temperature"}
        return {"kernels": kernels, "log_lr": learned["rates"] + learned["size"]} | {
            new: learned[old] for old, new in names.items()
        }

    def problem(self, batch: Batch, steps: int) -> InnerProblem:
        n, tasks = batch.support, len(batch.values)

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            kernel = self._kernel(weights, meta, meta["kernels"][:, :, :n])
            return batch.loss(meta["temperature"].exp() * leave_one_out(kernel, batch.targets, L2), slice(n))

        def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
            return batch.loss(self.logits(weights, meta, batch), slice(n, None))

        start = lambda meta: {"strength": batch.values.new_zeros(tasks, len(batch.widths))}  # noqa: E731
        return InnerProblem(start, inner_loss, outer_loss, steps, EmittedSGD(lambda meta: meta["log_lr"].exp()))

    def logits(self, weights: Tensors, meta: Tensors, batch: Batch) -> Tensor:
        kernel, n = self._kernel(weights, meta, meta["kernels"]), batch.support
        dual = torch.linalg.solve(kernel[:, :n] + L2 * torch.eye(n).to(kernel), batch.targets)
        return meta["temperature"].exp() * kernel[:, n:] @ dual

    def _kernel(self, weights: Tensors, meta: Tensors, kernels: Tensor) -> Tensor:
        strength = (2 * (meta["start"] + weights["strength"])).exp()
        return (strength.unsqueeze(1) @ kernels.flatten(2)).view(len(kernels), *kernels.shape[2:])


def _level(batch: Batch) -> Tensor:
    """The level of every feature."""
    return torch.repeat_interleave(torch.arange(len(batch.widths)), torch.tensor(batch.widths))
