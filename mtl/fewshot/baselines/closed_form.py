"""Baselines without gradient steps of ours, on the last level or on all levels of the readout."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Episode
from mtl.fewshot.baselines.classifiers import (
    LOGITS_PER_SCORE,
    channel_weights,
    lda_scores,
    logistic_logits,
    ridge_scores,
)
from mtl.fewshot.baselines.methods import Method
from mtl.fewshot.baselines.setup import STANDARDISED, Setup, Value, identified
from mtl.fewshot.heads import AbstractHead, NearestClassMean, Ridge
from mtl.tools.identity import digest

WEIGHTED_L2 = 0.01


def head_in_closed_form(setup: Setup, name: str, head: AbstractHead, centre: Tensor | None = None) -> Method:
    """A closed-form head on the last level.

    Args:
        centre: subtracted from all features first, ``(width,)``, of the last level or of all.
    """

    @torch.no_grad()
    def logits(episode: Episode) -> Tensor:
        seen, asked = setup.plain(episode)
        if centre is not None:
            shift = centre[-seen.shape[-1] :].to(seen.device)
            seen, asked = seen - shift, asked - shift
        labels = episode.support.labels.to(seen.device)
        return head.logits(asked, {}, (seen, labels), episode.ways)

    return identified(setup.method(name, logits), head=repr(head), centre=None if centre is None else digest(centre))


def nearest_class_mean(setup: Setup, value: Value) -> Method:
    """Cosine to the class means of the last level (arXiv 1703.05175)."""
    return head_in_closed_form(setup, "nearest class mean", NearestClassMean())


def logistic_regression(setup: Setup, value: Value) -> Method:
    """Logistic regression on unit-length features of the last level; of standardised ones where the value says so."""
    c, standardised = _split(value)

    def classify(seen: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
        return logistic_logits(_unit(seen), labels, _unit(asked), c, reduce=standardised)

    values = lambda ways: ways * (setup.levels[-1] + 1)  # noqa: E731
    return _on_last(setup, "logistic regression", classify, standardised, values)


def logistic_regression_all(setup: Setup, c: float) -> Method:
    """Logistic regression on unit-length standardised features of all levels (Head2Toe's point, arXiv 2201.03529)."""

    def classify(seen: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
        return logistic_logits(_unit(seen), labels, _unit(asked), c, reduce=True)

    values = lambda ways: ways * (setup.backbone.width + 1)  # noqa: E731
    return _on_all(setup, "logistic regression, all levels", classify, values)


def ridge_regression(setup: Setup, value: Value) -> Method:
    """Ridge regression on unit-length features of the last level; on standardised ones, less their support mean, where
    the value says so."""
    l2, standardised = _split(value)
    if not standardised:
        return head_in_closed_form(setup, "ridge regression", Ridge(l2))
    return _on_last(setup, "ridge regression", _ridge(l2), standardised)


def ridge_regression_all(setup: Setup, l2: float) -> Method:
    """Ridge regression on unit-length standardised features of all levels (Head2Toe's point, arXiv 2201.03529)."""
    return _on_all(setup, "ridge regression, all levels", _ridge(l2))


def weighted_ridge(setup: Setup, powers: tuple[float, float]) -> Method:
    """Ridge regression on all levels, channels weighted by hand: what the generator has to beat to be worth training.

    A channel counts by a power of its Fisher ratio (variance between class means over variance inside classes), a level
    by a power of ``exp(-loss)``, its leave-one-out loss on the support set.
    """

    def classify(seen: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
        weights = channel_weights(seen, labels, ways, setup.levels, powers).unsqueeze(1)
        return _ridge(WEIGHTED_L2)(seen * weights, labels, asked * weights, ways)

    return _on_all(setup, "ridge weighted by Fisher ratio and level", classify)


def discriminant_analysis(setup: Setup, value: Value) -> Method:
    """Linear discriminant analysis on unit-length features of the last level, its covariance shrunk by a tuned share;
    on standardised ones where the value says so."""
    shrinkage, standardised = _split(value)
    return _on_last(setup, "LDA with shrinkage", _lda(shrinkage), standardised)


def discriminant_analysis_all(setup: Setup, shrinkage: float) -> Method:
    """Linear discriminant analysis with shrinkage on unit-length standardised features of all levels."""
    return _on_all(setup, "LDA with shrinkage, all levels", _lda(shrinkage))


Classify = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Support features, their labels, query features and the number of ways, to logits ``(tasks, m, ways)``."""


def _ridge(l2: float) -> Classify:
    def classify(seen: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
        root = seen.shape[-1] ** 0.5  # unit length, in the units of the penalty: a mean square of one
        scores = ridge_scores(root * _unit(seen), labels, root * _unit(asked), ways, l2)
        return LOGITS_PER_SCORE * scores.double()  # no two scores become one

    return classify


def _lda(shrinkage: float) -> Classify:
    def classify(seen: Tensor, labels: Tensor, asked: Tensor, ways: int) -> Tensor:
        return lda_scores(_unit(seen), labels, _unit(asked), ways, shrinkage)

    return classify


def _on_last(
    setup: Setup,
    name: str,
    classify: Classify,
    standardised: bool,
    values: Callable[[int], int] = lambda ways: 0,
) -> Method:
    @torch.no_grad()
    def logits(episode: Episode) -> Tensor:
        seen, asked = setup.last_standardised(episode) if standardised else setup.plain(episode)
        return classify(seen, episode.support.labels.to(seen.device), asked, episode.ways)

    return setup.method(name, logits, values)


def _on_all(setup: Setup, name: str, classify: Classify, values: Callable[[int], int] = lambda ways: 0) -> Method:
    @torch.no_grad()
    def logits(episode: Episode) -> Tensor:
        seen, asked = setup.standardised(episode)
        return classify(seen, episode.support.labels.to(seen.device), asked, episode.ways)

    return setup.method(name, logits, values)


def _split(value: Value) -> tuple[float, bool]:
    """A number, and whether features are standardised first."""
    return (value[0], value[1:] == (STANDARDISED,)) if isinstance(value, tuple) else (value, False)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)
