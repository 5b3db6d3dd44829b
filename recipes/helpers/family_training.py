"""Training on some families of readouts in seconds, and answers to test tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtl
from helpers.readouts import Network

TASKS = 8  # per outer step
WARMUP = 10  # steps
FIRST = 1000  # episode, of each family: those before are for estimates


def train(
    network: Network,
    tasks: mtl.data.FamilyTasks,
    kind: str,
    families: Sequence[str],
    steps: int,
    lr: float,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
) -> mtl.MetaLearner:
    """A generator trained on some families in turn, without an inner loop.

    Args:
        start: weights to begin with.
    """
    torch.manual_seed(seed)
    generator = mtl.fewshot.make_generator(kind, network.backbone)
    generator.standardise(network.statistics)
    if start is not None:
        generator.load_state_dict(start)
    learner = mtl.MetaLearner(network.backbone, generator, inner_steps=0)
    parameters = [p for name, p in generator.named_parameters() if name != "step_sizes_of.log_lr"]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for step in range(steps):
        drawn = [divmod(step * TASKS + i, len(families)) for i in range(TASKS)]
        episodes = [tasks.sources[families[family]].sample(FIRST + turn) for turn, family in drawn]
        for places, batch in mtl.stack_by_shape(episodes):
            learner.meta_step(batch, weight=len(places) / TASKS)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        optimizer.zero_grad()
    return learner


def judge(learner: mtl.MetaLearner, episodes: Sequence[mtl.Episode]) -> np.ndarray:
    """Accuracy and mean cross-entropy of every episode, ``(episodes, 2)``."""
    found = np.zeros((len(episodes), 2))
    for places, batch in mtl.stack_by_shape(episodes):
        logits = learner.adapt(batch.support).logits(batch.query.inputs)
        right = (logits.argmax(-1) == batch.query.labels).float().mean(1)
        losses = F.cross_entropy(logits.mT, batch.query.labels, reduction="none").mean(1)
        found[places] = torch.stack([right, losses], 1).numpy()
    return found


@dataclass(frozen=True)
class Answers:
    """Accuracy and loss of every test episode, ``(episodes, 2)`` for each family."""

    of_family: Mapping[str, np.ndarray]

    def means(self, families: Sequence[str]) -> np.ndarray:
        """``(families, 2)``."""
        return np.stack([self.of_family[n].mean(0) for n in families])


def cells(own: Sequence[Answers], others: Sequence[Answers], families: Sequence[str]) -> list[str]:
    """Mean accuracy and loss over seeds and families, all alike, and the leads over others of the same seeds.

    A seed's episodes of one family are answered by one training, so an interval counts each family of a seed once.
    """
    mine, theirs = (np.concatenate([a.means(families) for a in answers]) for answers in (own, others))
    accuracy, loss = mine.mean(0)
    (more, half), (less, of_loss) = (mtl.tools.mean_interval(lead) for lead in (mine - theirs).T)
    leads = [f"{100 * more:+.2f} ± {100 * half:.2f}", f"{less:+.3f} ± {of_loss:.3f}"]
    return [f"{100 * accuracy:.1f}", f"{loss:.3f}", *leads]
