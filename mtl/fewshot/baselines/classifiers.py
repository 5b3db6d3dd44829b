"""Closed-form classifiers of a few features with very many channels: everything is solved in the span of the support.

All take support features ``(tasks, n, D)`` with labels ``(tasks, n)`` and query features ``(tasks, m, D)``, and cost a
matrix of ``n x n`` beside one pass over the features, however large D is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.fewshot.generators.channel_statistics import level_factors
from mtl.fewshot.heads import class_means

LOGITS_PER_SCORE = 5.0  # turns leave-one-out scores, which lie near -1 .. 1, into logits
EVIDENCE_L2 = 0.1
RATIO_FLOOR = 0.05  # of the variances in a Fisher ratio, on standardised features


def ridge_scores(seen: Tensor, labels: Tensor, asked: Tensor, ways: int, l2: float) -> Tensor:
    """Ridge regression onto one-hot labels, both centred by the support set: ``(tasks, m, ways)``.

    The penalty is relative to the mean square of a feature times D, so that one grid serves any number of levels.
    """
    mean, width = seen.mean(1, keepdim=True), seen.shape[-1]
    x, targets = seen - mean, _centred_targets(labels, ways, seen)
    dual = torch.linalg.solve(_gram(x) + l2 * _eye(x), targets)
    prior = F.one_hot(labels, ways).to(seen.dtype).mean(1, keepdim=True)
    return (asked - mean) @ (x.mT @ dual) / width + prior


def leave_one_out_scores(seen: Tensor, labels: Tensor, ways: int, l2: float) -> Tensor:
    """Scores of every support example by the ridge on all others, less the mean target: ``(tasks, n, ways)``.

    Allen's PRESS identity, from one inverse; the mean of the features and of the targets is left out with the example.
    """
    x, targets = seen - seen.mean(1, keepdim=True), _centred_targets(labels, ways, seen)
    inverse = l2 * torch.linalg.inv(_gram(x) + l2 * _eye(x))
    return targets - inverse @ targets / (inverse.diagonal(dim1=1, dim2=2) - 1 / x.shape[1]).unsqueeze(-1)


def level_losses(seen: Tensor, labels: Tensor, ways: int, widths: Sequence[int]) -> Tensor:
    """Leave-one-out cross-entropy of a ridge on each level alone, ``(tasks, levels)``.

    All equal where a class has one example, which says nothing once it is left out.
    """
    if int(F.one_hot(labels, ways).sum(1).min()) < 2:
        return seen.new_zeros(len(seen), len(widths))

    def loss(level: Tensor) -> Tensor:
        logits = LOGITS_PER_SCORE * leave_one_out_scores(level, labels, ways, EVIDENCE_L2)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)

    return torch.stack([loss(level) for level in seen.split(list(widths), -1)], 1)


def fisher_ratio(seen: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Variance between class means over variance inside classes, ``(tasks, D)``, both with a floor."""
    means = class_means(seen, labels, ways)
    between = means.var(1, correction=0)
    inside = (seen - _of_own_class(means, labels)).square().mean(1)
    return (between + RATIO_FLOOR) / (inside + RATIO_FLOOR)


def channel_weights(seen: Tensor, labels: Tensor, ways: int, widths: Sequence[int], powers: Sequence[float]) -> Tensor:
    """Fisher ratio and level evidence, each to its power: ``(tasks, D)`` factors whose mean square is one.

    Args:
        powers: of the Fisher ratio of a channel, and of ``exp(-loss)`` of its level.
    """
    of_channel, of_level = powers
    per_level = level_factors(level_losses(seen, labels, ways, widths), widths, of_level)
    weights = fisher_ratio(seen, labels, ways) ** of_channel * per_level
    return weights / weights.square().mean(1, keepdim=True).sqrt()


def lda_scores(seen: Tensor, labels: Tensor, asked: Tensor, ways: int, shrinkage: float) -> Tensor:
    """Linear discriminant analysis with a shrunk covariance inside classes, ``(tasks, m, ways)``.

    The covariance is ``(1 - shrinkage) S + shrinkage tr(S) / D``, as scikit-learn's ``solver="lsqr"`` has it. Its
    inverse is applied through the n x n Gram matrix (Woodbury). With one example per class it is the nearest class
    mean.

    Args:
        shrinkage: in ``0 .. 1``, above 0: without it, the covariance of few examples has no inverse.

    Raises:
        ValueError: for a shrinkage out of range.
    """
    if not 0 < shrinkage <= 1:
        raise ValueError(f"LDA with shrinkage={shrinkage}: expected more than 0 and at most 1")
    (_, n, width), centre = seen.shape, seen.mean(1, keepdim=True)
    means = class_means(seen, labels, ways)
    inside = seen - _of_own_class(means, labels)
    trace = inside.square().sum((1, 2)) / n
    # Nothing varies inside classes of one example each; any covariance that is equal in all directions does.
    floor = shrinkage * torch.where(trace > 0, trace / width, 1.0)[:, None, None]
    factor = (1 - shrinkage) / n
    offsets = means - centre
    reached = torch.linalg.solve(floor * _eye(seen) + factor * inside @ inside.mT, inside @ offsets.mT)
    weight = (offsets - factor * reached.mT @ inside) / floor
    bias = F.one_hot(labels, ways).to(seen.dtype).mean(1).log() - (weight * offsets).sum(-1) / 2
    return (asked - centre) @ weight.mT + bias.unsqueeze(1)


def logistic_logits(seen: Tensor, labels: Tensor, asked: Tensor, c: float, reduce: bool) -> Tensor:
    """Logits ``(tasks, m, ways)`` by scikit-learn's logistic regression, task by task.

    Args:
        c: inverse penalty.
        reduce: fit in coordinates of the span of the support features. The penalised solution lies in it, so it is the
            same one, at a fraction of the time where there are more channels than examples.
    """
    from sklearn.linear_model import LogisticRegression  # its import takes as long as torch's

    if reduce and seen.shape[-1] > seen.shape[1]:
        seen, asked = in_span(seen, asked)
    fits = [
        LogisticRegression(C=c, max_iter=1000).fit(x, y).decision_function(z)
        for x, y, z in zip(*(t.cpu().numpy() for t in (seen, labels, asked)), strict=True)
    ]
    logits = torch.stack([torch.as_tensor(found) for found in fits]).to(labels.device)
    # Of two classes, there is one number for the second.
    return logits if logits.dim() == 3 else torch.stack([torch.zeros_like(logits), logits], -1)


def in_span(seen: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates ``(tasks, n, n)`` and ``(tasks, m, n)`` in an orthonormal basis of the support features' span."""
    basis = torch.linalg.qr(seen.mT)[0]
    return seen @ basis, asked @ basis


def _centred_targets(labels: Tensor, ways: int, like: Tensor) -> Tensor:
    targets = F.one_hot(labels, ways).to(like.dtype)
    return targets - targets.mean(1, keepdim=True)


def _of_own_class(means: Tensor, labels: Tensor) -> Tensor:
    return torch.gather(means, 1, labels.unsqueeze(-1).expand(-1, -1, means.shape[-1]))


def _gram(x: Tensor) -> Tensor:
    return x @ x.mT / x.shape[-1]


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
