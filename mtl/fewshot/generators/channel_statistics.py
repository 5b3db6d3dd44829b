"""What the channel-wise generator reads: class statistics of every channel, and how well each level separates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.heads import class_means, leave_one_out

STATISTICS = 6
FLOOR = 0.05  # of the variances inside logarithms
EVIDENCE_L2, EVIDENCE_SCALE = 0.1, 5.0
NO_EVIDENCE = 0.37  # of a class of one example, which cannot be left out; evidence is 0 when perfect, 1 at chance


def channel_statistics(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Statistics of every channel over the classes of a task, which do not depend on the numbering of classes.

    They are: the absolute mean; the standard deviations between class means, inside classes, and of all; the logarithm
    of the variance between over the variance inside; and that of the variance of all.

    Args:
        values: standardised, ``(tasks, n, channels)``.
        labels: ``(tasks, n)``; classes may differ in size.
        ways: number of classes.

    Returns:
        ``(tasks, channels, 6)``.
    """
    means = class_means(values, labels, ways)
    residual = values - torch.gather(means, 1, labels.unsqueeze(-1).expand_as(values))
    between = means.var(1, unbiased=False)
    within = class_means(residual.square(), labels, ways).mean(1)
    total = values.var(1, unbiased=False)
    spreads = [v.clamp_min(0).sqrt() for v in (between, within, total)]
    contrast, size = torch.log((between + FLOOR) / (within + FLOOR)), torch.log(total + FLOOR)
    return torch.stack([means.mean(1).abs(), *spreads, contrast, size], -1)


def level_evidence(values: Tensor, labels: Tensor, ways: int, widths: Sequence[int]) -> Tensor:
    """How well each level alone separates the classes: the leave-one-out cross-entropy of ridge regression on it.

    In closed form, for all tasks and levels at once. It is 0 when perfect and 1 at chance, and a constant for tasks in
    which a class has a single example.

    Args:
        values: standardised, ``(tasks, n, channels)``.
        labels: ``(tasks, n)``.
        ways: number of classes.
        widths: of the levels, in the order of the channels.

    Returns:
        ``(tasks, levels)``.
    """
    centred = values - values.mean(1, keepdim=True)
    kernels = torch.stack([x @ x.mT / x.shape[-1] for x in centred.split(list(widths), -1)], 1)
    members = F.one_hot(labels, ways).to(values.dtype)
    scores = EVIDENCE_SCALE * leave_one_out(kernels, members.unsqueeze(1), EVIDENCE_L2)
    loss = -(scores.log_softmax(-1) * members.unsqueeze(1)).sum(-1).mean(-1) / torch.log(torch.tensor(float(ways)))
    alone = (members.sum(1) < 2).any(1, keepdim=True)
    return torch.where(alone, NO_EVIDENCE, loss)
