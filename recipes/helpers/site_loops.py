"""Fine-tuning inside a network as an inner loop that is worth many steps, and what may be learned of it.

Scale and shift of the last blocks and a cosine head, by gradient descent with momentum on the labelled examples. What
lies below the first site is the same in every step, of every visit of an example, and is computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mtl
from helpers.long_loops import AbstractBatch, AbstractPool, Loop, losses, noisy
from helpers.readouts import Data
from mtl.data import DividedFamilies, FamilyTasks, InputCache
from mtl.fewshot import Cosine
from mtl.metagrad import EmittedSGD, InnerProblem
from mtl.metagrad.emitted_sgd import DECAY, MOMENTUM
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Prepared
from mtl.networks.modulation import Modulation


@dataclass(frozen=True)
class SiteBatch(AbstractBatch):
    """Some tasks as the network takes them, with the labels of :class:`AbstractBatch`."""

    backbone: mtl.Backbone
    seen: Prepared
    asked: Prepared


@dataclass(frozen=True)
class SitePool(AbstractPool):
    """Tasks of a part of the families, read when they are asked for.

    Args:
        noise: share of the support labels that are replaced by another class.
    """

    backbone: mtl.Backbone
    tasks: FamilyTasks
    noise: float
    unseen: tuple[bool, ...]

    @staticmethod
    def of(backbone: mtl.Backbone, tasks: FamilyTasks, count: int, noise: float = 0.0) -> SitePool:
        return SitePool(backbone, tasks, noise, tuple(tasks.family(i) in tasks.unseen for i in range(count)))

    def __len__(self) -> int:
        return len(self.unseen)

    def __getitem__(self, tasks: Tensor) -> SiteBatch:
        episode = mtl.Episode.stack([self.tasks.sample(int(i)) for i in tasks])
        given = zip(episode.support.labels, tasks, strict=True)
        seen = torch.stack([noisy(labels, episode.ways, self.noise, int(i)) for labels, i in given])
        labels = torch.cat([seen, episode.query.labels], 1)
        inputs = self.backbone.prepare(episode.support.inputs), self.backbone.prepare(episode.query.inputs)
        return SiteBatch(labels, seen.shape[1], episode.ways, self.backbone, *inputs)


def site_pools(
    name: str, last_k: int, data: Data, divided: DividedFamilies, shots: int, queries: int, sizes: dict[str, int],
    noise: float, **options: Any,
) -> dict[str, SitePool]:  # fmt: skip
    """So many tasks of each part, of a network whose last blocks are modulated."""
    backbone = mtl.load_backbone(name, last_k=last_k, **options)
    rows = InputCache(backbone.precompute, folder=data.cache_dir, version=backbone.cache_key())
    ways = divided.split.request.ways
    tasks = {p: FamilyTasks(divided, p, preprocess=rows, ways=ways, shots=shots, queries=queries) for p in sizes}
    return {p: SitePool.of(backbone, tasks[p], count, noise) for p, count in sizes.items()}


class Sites(Loop[SiteBatch]):
    """Scale and shift of the sites and a cosine head that starts at the class means.

    ``rates``: a log step size for the scale and the shift of each channel, and for each feature of the head;
    ``site_rates``: for each site and kind, and the head; ``start``: where scale and shift start; ``loss``: log-
    temperature and smoothing of the inner loss.
    """

    learnable = ("rates", "site_rates", "momentum", "decay", "start", "loss")

    def initial(self, pool: SitePool, steps: int) -> Tensors:
        inside, width, sites = pool.backbone.modulation_width, pool.backbone.width, len(pool.backbone.sites)
        return {
            "rates": torch.zeros(2 * inside + width),
            "site_rates": torch.zeros(2 * sites + 1),
            "momentum": torch.tensor([math.log(9.0)]),
            "decay": torch.tensor([-8.0]),
            "start": torch.zeros(2 * inside),
            "loss": torch.tensor([0.0, -6.0]),
            "size": torch.zeros(1),
        }

    def emit(self, learned: Tensors, batch: SiteBatch) -> Tensors:
        sites = [s.width for s in batch.backbone.sites]
        widths = torch.tensor([*sites, *sites, batch.backbone.width])
        rates = learned["rates"] + learned["site_rates"].repeat_interleave(widths) + learned["size"]
        start, inside = learned["start"], sum(sites)
        return {
            "rates.scale": rates[:inside],
            "rates.shift": rates[inside : 2 * inside],
            "rates.head": rates[2 * inside :],
            "start.scale": start[:inside],
            "start.shift": start[inside:],
            MOMENTUM: learned["momentum"],
            DECAY: learned["decay"],
            "loss": learned["loss"],
        }

    def problem(self, batch: SiteBatch, steps: int) -> InnerProblem:
        n, tasks, head = batch.support, len(batch.labels), Cosine()

        def init(meta: Tensors) -> Tensors:
            still = {k: meta[f"start.{k}"].new_zeros(tasks, len(meta[f"start.{k}"])) for k in ("scale", "shift")}
            features = self._features(batch, batch.seen, still, meta)
            return still | {"head": head.init(features, batch.labels[:, :n], batch.ways)["weight"]}

        def inner_loss(weights: Tensors, meta: Tensors, step: int) -> Tensor:
            logits = self._logits(batch, batch.seen, weights, meta) * meta["loss"][0].exp()
            smoothing, right = meta["loss"][1].sigmoid(), losses(logits, batch.labels[:, :n])
            return ((1 - smoothing) * right - smoothing * logits.log_softmax(-1).mean(-1)).mean(1)

        def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
            return batch.loss(self.logits(weights, meta, batch), slice(n, None))

        sizes = lambda meta: {k: meta[f"rates.{k}"].exp() for k in ("scale", "shift", "head")}  # noqa: E731
        return InnerProblem(init, inner_loss, outer_loss, steps, EmittedSGD(sizes))

    def logits(self, weights: Tensors, meta: Tensors, batch: SiteBatch) -> Tensor:
        return self._logits(batch, batch.asked, weights, meta)

    def _logits(self, batch: SiteBatch, inputs: Prepared, weights: Tensors, meta: Tensors) -> Tensor:
        features = self._features(batch, inputs, weights, meta)
        return Cosine().logits(
            features, {"weight": weights["head"]}, (features[:, :0], batch.labels[:, :0]), batch.ways
        )

    def _features(self, batch: SiteBatch, inputs: Prepared, weights: Tensors, meta: Tensors) -> Tensor:
        scale = 1 + meta["start.scale"] + weights["scale"]
        return batch.backbone(inputs, Modulation(scale, meta["start.shift"] + weights["shift"]))
