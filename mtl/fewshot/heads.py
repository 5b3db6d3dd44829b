"""Classification heads: functions of features, fast weights and the support set, batched over tasks.

``Cosine`` and ``Linear`` have fast weights, which start at the class means and are then adapted. ``NearestClassMean``,
``Ridge`` and ``CentredRidge`` have none and solve for the classifier in closed form each time. In the inner loss, a
closed-form head classifies each support example from the *others* (leave one out), since an example's own mean would
give it away.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.metagrad.registry import Registry
from mtl.metagrad.tensors import Tensors

HEADS = Registry("head", "mtl.fewshot.HEADS")
"""Heads by the names that saved learners hold; add your own with ``HEADS.register``."""


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean feature of every class: ``(tasks, n, width), (tasks, n) -> (tasks, ways, width)``.

    Classes may differ in size.
    """
    members = F.one_hot(labels, ways).to(features.dtype)
    return members.mT @ features / members.sum(1).clamp_min(1).unsqueeze(-1)


def leave_one_out(kernel: Tensor, targets: Tensor, l2: float) -> Tensor:
    """Outputs for every example of the ridge regression, with an intercept, that was fitted to all the others.

    Exact, from one inverse (Allen's PRESS identity).

    Args:
        kernel: inner products of the centred features, ``(..., n, n)``.
        targets: ``(..., n, outputs)``.
        l2: penalty on the weights, not on the intercept.
    """
    inverse = torch.linalg.inv(kernel + l2 * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device))
    residual = inverse @ (targets - targets.mean(-2, keepdim=True))
    # What is not fitted of an example: its share of the inverse, but for the intercept's.
    free = inverse.diagonal(dim1=-2, dim2=-1) - 1 / (l2 * kernel.shape[-1])
    return targets - residual / free.unsqueeze(-1)


def _without_bias(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight, torch.zeros_like(weight[..., 0])


class AbstractHead(abc.ABC):
    """Turns features into logits, with one classifier per task.

    Implementations are frozen dataclasses whose fields are their options, so that they can be saved. They name their
    fast weights as they like; the learner keeps them apart from the generator's, and gives all of them one learned step
    size.
    """

    needs_support: ClassVar[bool] = True
    """Whether :meth:`logits` reads the support set. False spares a pass over it per prediction."""

    keeps_logits: ClassVar[bool] = False
    """Whether the classifier of :meth:`as_linear` has the same logits, and not the same predictions alone."""

    unit_length: ClassVar[bool] = False
    """Whether that classifier has the same logits on features of unit length. A task needs one of both to be saved."""

    reads_kernel: ClassVar[bool] = False
    """Whether the inner loss needs inner products of the support features alone, see :meth:`kernel_logits`."""

    @abc.abstractmethod
    def init(self, features: Tensor, labels: Tensor, ways: int) -> Tensors:
        """Fast weights before the first inner step, from support features ``(tasks, n, width)``; ``{}`` for none.

        Each has a leading task axis. Names and numbers of axes are the same for any number of ways.
        """

    @abc.abstractmethod
    def logits(self, features: Tensor, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        """Logits of queries: ``(tasks, m, width) -> (tasks, m, ways)``.

        Args:
            support: features and labels of the support set under the same modulation; empty where a head does not
                need them.
        """

    @abc.abstractmethod
    def support_logits(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        """Logits of the support examples themselves, for the inner loss."""

    def kernel_logits(self, kernel: Tensor, labels: Tensor, ways: int) -> Tensor:
        """:meth:`support_logits` from inner products ``(tasks, n, n)`` of centred features, over their width."""
        raise NotImplementedError(f"{type(self).__name__} reads features; expected reads_kernel = False")

    @abc.abstractmethod
    def as_linear(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor] | None:
        """A plain linear classifier with the same predictions, for exporting; None where there is none.

        Weight ``(tasks, ways, width)`` and bias ``(tasks, ways)``. Its logits may differ from :meth:`logits` by one
        positive factor per example (such as the length of the features, where the head normalises them).
        """


class AbstractAdaptedHead(AbstractHead):
    """A head whose fast weights are all that it knows of the support set."""

    needs_support: ClassVar[bool] = False

    def support_logits(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return self.logits(support[0], weights, support, ways)


class AbstractClosedFormHead(AbstractHead):
    """A head without fast weights: a linear classifier on unit-length features, solved from the support set."""

    unit_length: ClassVar[bool] = True

    @abc.abstractmethod
    def weight(self, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        """The classifier's weight ``(tasks, ways, width)``."""

    def logits(self, features: Tensor, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return F.normalize(features, dim=-1) @ self.weight(support, ways).mT

    def as_linear(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor]:
        return _without_bias(self.weight(support, ways))

    def init(self, features: Tensor, labels: Tensor, ways: int) -> Tensors:
        return {}


class _Positive:
    """Options that are all positive: a negative scale would turn every answer round, an infinite one is NaN."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{type(self).__name__}({name}={value}): expected a positive, finite number")


@HEADS.register("cosine")
@dataclass(frozen=True)
class Cosine(_Positive, AbstractAdaptedHead):
    """Cosine to one adapted vector per class, times a scale (arXiv 1804.09458).

    Args:
        scale: positive; logits lie in ``-scale .. scale``.
    """

    unit_length: ClassVar[bool] = True
    scale: float = 10.0

    def init(self, features: Tensor, labels: Tensor, ways: int) -> Tensors:
        # Unit vectors, so that one step size suits networks whose features differ in length.
        return {"weight": F.normalize(class_means(F.normalize(features, dim=-1), labels, ways), dim=-1)}

    def logits(self, features: Tensor, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(weights["weight"], dim=-1).mT

    def as_linear(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor]:
        return _without_bias(self.scale * F.normalize(weights["weight"], dim=-1))


@HEADS.register("linear")
@dataclass(frozen=True)
class Linear(_Positive, AbstractAdaptedHead):
    """A linear layer that starts as the nearest-class-mean rule (Proto-MAML, arXiv 1903.03096, section 3.3).

    Args:
        scale: positive; the squared distances that the rule starts from are divided by ``width / scale``.
    """

    keeps_logits: ClassVar[bool] = True
    scale: float = 10.0

    def init(self, features: Tensor, labels: Tensor, ways: int) -> Tensors:
        means = class_means(features, labels, ways)
        factor = self.scale / features.shape[-1]
        return {"weight": 2 * factor * means, "bias": -factor * means.square().sum(-1)}

    def logits(self, features: Tensor, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return features @ weights["weight"].mT + weights["bias"].unsqueeze(1)

    def as_linear(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor]:
        return weights["weight"], weights["bias"]


@HEADS.register("ncm")
@dataclass(frozen=True)
class NearestClassMean(_Positive, AbstractClosedFormHead):
    """Cosine to the mean support feature of each class (arXiv 1703.05175).

    It has no fast weights. In the inner loss, a class of one example keeps that example.

    Args:
        scale: positive; logits lie in ``-scale .. scale``.
    """

    scale: float = 10.0

    def support_logits(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        unit, labels = F.normalize(support[0], dim=-1), support[1]
        members = F.one_hot(labels, ways).to(unit.dtype)
        sums, counts = members.mT @ unit, members.sum(1)
        logits = self.logits(support[0], weights, support, ways)
        # Only an example's own class changes when it is left out; a class of one keeps its only example.
        own_sum = torch.gather(sums, 1, labels.unsqueeze(-1).expand_as(unit)) - unit
        alone = torch.gather(counts, 1, labels) == 1
        own_mean = torch.where(alone.unsqueeze(-1), unit, own_sum)
        own = self.scale * (unit * F.normalize(own_mean, dim=-1)).sum(-1, keepdim=True)
        return torch.where(members.bool(), own, logits)

    def weight(self, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        means = class_means(F.normalize(support[0], dim=-1), support[1], ways)
        return self.scale * F.normalize(means, dim=-1)


@HEADS.register("ridge")
@dataclass(frozen=True)
class Ridge(_Positive, AbstractClosedFormHead):
    """Ridge regression onto centred one-hot labels, in closed form (R2-D2, arXiv 1805.08136).

    It inverts a matrix of the size of the support set.

    Args:
        l2: ridge penalty on unit-length features, > 0.
        scale: factor on the regression's outputs, which lie near ``-1 .. 1``.

    Raises:
        ValueError: when a number is not positive and finite.
    """

    l2: float = 1.0
    scale: float = 10.0

    def _solve(self, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        unit = F.normalize(support[0], dim=-1)
        targets = F.one_hot(support[1], ways).to(unit.dtype) - 1 / ways
        gram = unit @ unit.mT + self.l2 * torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
        inverse = torch.linalg.inv(gram)
        return unit, targets, inverse, inverse @ targets

    def support_logits(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        _, targets, inverse, dual = self._solve(support, ways)
        # Leave-one-out predictions of ridge regression, exactly, from the one solve (Allen's PRESS identity).
        return self.scale * (targets - dual / inverse.diagonal(dim1=1, dim2=2).unsqueeze(-1))

    def weight(self, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        unit, _, _, dual = self._solve(support, ways)
        return self.scale * dual.mT @ unit


@HEADS.register("centred-ridge")
@dataclass(frozen=True)
class CentredRidge(_Positive, AbstractHead):
    """Ridge regression with an intercept onto one-hot labels, on features as long as they are.

    Features are centred by the mean of the support set and divided by the square root of their width. The length of a
    feature vector is kept, so that scales of channels, together and apart, set how strong the penalty is.

    Args:
        l2: ridge penalty, > 0.
        scale: factor on the regression's outputs, which lie near ``-1 .. 1``.

    Raises:
        ValueError: when a number is not positive and finite.
    """

    keeps_logits: ClassVar[bool] = True
    reads_kernel: ClassVar[bool] = True
    l2: float = 0.1
    scale: float = math.exp(2)

    def init(self, features: Tensor, labels: Tensor, ways: int) -> Tensors:
        return {}

    def logits(self, features: Tensor, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        weight, bias = self._solve(support, ways)
        # Centred before they are multiplied: less rounding than a bias that takes the mean off again.
        return (features - support[0].mean(1, keepdim=True)) @ weight.mT + bias.unsqueeze(1)

    def support_logits(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> Tensor:
        return self.kernel_logits(_kernel(_centred(support[0])), support[1], ways)

    def kernel_logits(self, kernel: Tensor, labels: Tensor, ways: int) -> Tensor:
        targets = F.one_hot(labels, ways).to(kernel.dtype) - 1 / ways
        return self.scale * leave_one_out(kernel, targets, self.l2)

    def as_linear(self, weights: Tensors, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor]:
        weight, bias = self._solve(support, ways)
        return weight, bias - (support[0].mean(1, keepdim=True) @ weight.mT).squeeze(1)

    def _solve(self, support: tuple[Tensor, Tensor], ways: int) -> tuple[Tensor, Tensor]:
        """Weight ``(tasks, ways, width)`` on centred features, and intercept ``(tasks, ways)``."""
        centred, targets = _centred(support[0]), F.one_hot(support[1], ways).to(support[0].dtype) - 1 / ways
        intercept = targets.mean(1)
        kernel = _kernel(centred)
        penalty = self.l2 * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
        dual = torch.linalg.solve(kernel + penalty, targets - intercept.unsqueeze(1))
        return self.scale / centred.shape[-1] * dual.mT @ centred, self.scale * intercept


def _centred(features: Tensor) -> Tensor:
    return features - features.mean(1, keepdim=True)


def _kernel(centred: Tensor) -> Tensor:
    return centred @ centred.mT / centred.shape[-1]
