"""What the channel-wise generator reads: class statistics of every channel, and how well each level separates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.generators.neighbours import Neighbourhood
from mtl.fewshot.heads import class_means, leave_one_out

STATISTICS = 6  # of a channel
NEIGHBOURS = 6  # two of each of its three neighbourhoods
EVIDENCE = 3  # of a level
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
    members = F.one_hot(labels, ways).to(values.dtype)
    counts = members.sum(1).unsqueeze(-1)
    means = class_means(values, labels, ways)
    squares = members.mT @ torch.baddbmm(values, members, means, alpha=-1).square()  # of the distances to these means
    between = _variance(means)
    within = (squares / counts.clamp_min(1)).mean(1)
    # All that varies, class by class, does so within it or between it and the mean of all.
    apart = counts * (means - values.mean(1, keepdim=True)).square()
    total = (squares + apart).sum(1) / values.shape[1]
    spreads = [v.clamp_min(0).sqrt() for v in (between, within, total)]
    return torch.stack([means.mean(1).abs(), *spreads, *_contrast_and_size(between, within, total)], -1)


def _variance(values: Tensor) -> Tensor:
    """Population variance over the second axis; ``torch.var`` of any axis but the last takes many times as long."""
    return (values - values.mean(1, keepdim=True)).square().mean(1)


def neighbour_statistics(statistics: Tensor, neighbourhoods: Sequence[Neighbourhood]) -> Tensor:
    """Contrast and size of a channel's neighbours, whose variances are averaged: five examples alone say little of one.

    Args:
        statistics: from :func:`channel_statistics`, ``(tasks, channels, 6)``.
        neighbourhoods: see :func:`neighbourhoods_of`.

    Returns:
        ``(tasks, channels, 2 * neighbourhoods)``.
    """
    variances = statistics[..., 1:4].square()
    averages = [average(variances) for average in neighbourhoods]
    return torch.cat([torch.stack(_contrast_and_size(*v.unbind(-1)), -1) for v in averages], -1)


def _contrast_and_size(between: Tensor, within: Tensor, total: Tensor) -> list[Tensor]:
    return [torch.log((between + FLOOR) / (within + FLOOR)), torch.log(total + FLOOR)]


def level_factors(losses: Tensor, widths: Sequence[int], power: float) -> Tensor:
    """``exp(-power * loss)`` of each channel's level, over that of the best level: large losses do not vanish.

    Args:
        losses: ``(tasks, levels)``.
        widths: of the levels.

    Returns:
        ``(tasks, channels)``.
    """
    of_level = torch.exp(-power * (losses - losses.amin(1, keepdim=True)))
    return of_level.repeat_interleave(torch.tensor(list(widths), device=losses.device), 1)


def level_evidence(values: Tensor, labels: Tensor, ways: int, widths: Sequence[int]) -> Tensor:
    """What the examples look like to each level alone, in three numbers.

    How well it separates the classes: the leave-one-out cross-entropy of ridge regression on it, in closed form. It is
    0 when perfect and 1 at chance, and a constant for tasks in which a class has a single example. The logarithm of its
    mean square. And that of the number of directions in which the examples differ (the participation ratio of their
    kernel).

    Args:
        values: standardised, ``(tasks, n, channels)``.
        labels: ``(tasks, n)``.
        ways: number of classes.
        widths: of the levels, in the order of the channels.

    Returns:
        ``(tasks, levels, 3)``.
    """
    centred = values - values.mean(1, keepdim=True)
    kernels = torch.stack([x @ x.mT / x.shape[-1] for x in centred.split(list(widths), -1)], 1)
    members = F.one_hot(labels, ways).to(values.dtype)
    scores = EVIDENCE_SCALE * leave_one_out(kernels, members.unsqueeze(1), EVIDENCE_L2)
    loss = -(scores.log_softmax(-1) * members.unsqueeze(1)).sum(-1).mean(-1) / math.log(ways)
    alone = (members.sum(1) < 2).any(1, keepdim=True)
    trace = kernels.diagonal(dim1=-2, dim2=-1).sum(-1)
    directions = trace.square() / kernels.square().sum((-2, -1)).clamp_min(1e-6)
    size = torch.log(trace / values.shape[1] + FLOOR)
    return torch.stack([torch.where(alone, NO_EVIDENCE, loss), size, torch.log(directions + FLOOR)], -1)
