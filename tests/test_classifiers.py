"""Closed forms through the support's span equal their plain definitions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mtl.fewshot.baselines import classifiers

WAYS, SHOTS, WIDTHS = 3, 4, (5, 2, 13)


def problem(shots: int = SHOTS, tasks: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Support features with more channels than examples, labels in no order, and queries."""
    g = torch.Generator().manual_seed(shots)
    labels = torch.stack(
        [torch.arange(WAYS).repeat(shots)[torch.randperm(WAYS * shots, generator=g)] for _ in range(tasks)]
    )
    means = 2 + torch.randn(tasks, WAYS, sum(WIDTHS), generator=g, dtype=torch.float64)
    noise = torch.randn(tasks, WAYS * shots + 30, sum(WIDTHS), generator=g, dtype=torch.float64)
    seen = torch.stack([m[y] for m, y in zip(means, labels, strict=True)]) + noise[:, :-30]
    return seen, labels, means.mean(1, keepdim=True) + 1.5 * noise[:, -30:]


def primal_ridge(x: Tensor, y: Tensor, asked: Tensor, l2: float) -> Tensor:
    """Least squares with a penalty on the weights and none on the intercept, on features over sqrt(D)."""
    x, asked = x / x.shape[1] ** 0.5, asked / x.shape[1] ** 0.5
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    penalty = l2 * torch.diag(torch.cat([torch.ones(x.shape[1]), torch.zeros(1)])).double()
    weights = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ y)
    return torch.cat([asked, torch.ones_like(asked[:, :1])], 1) @ weights


def test_ridge_is_the_primal_problem():
    seen, labels, asked = problem()
    found = classifiers.ridge_scores(seen, labels, asked, WAYS, 0.3)
    for t in range(2):
        expected = primal_ridge(seen[t], F.one_hot(labels[t], WAYS).double(), asked[t], 0.3)
        assert torch.allclose(found[t], expected, atol=1e-9)


def test_leave_one_out_scores_are_those_of_fits_without_the_example():
    seen, labels, _ = problem()
    found = classifiers.leave_one_out_scores(seen, labels, WAYS, 0.2)
    y = F.one_hot(labels, WAYS).double()
    for t in range(2):
        for i in range(WAYS * SHOTS):
            rest = [j for j in range(WAYS * SHOTS) if j != i]
            expected = primal_ridge(seen[t, rest], y[t, rest], seen[t, i : i + 1], 0.2)[0] - y[t].mean(0)
            assert torch.allclose(found[t, i], expected, atol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_lda_is_its_definition(shrinkage):
    seen, labels, asked = problem()
    found = classifiers.lda_scores(seen, labels, asked, WAYS, shrinkage)
    for t in range(2):
        x, y = seen[t], labels[t]
        means = torch.stack([x[y == c].mean(0) for c in range(WAYS)])
        inside = x - means[y]
        covariance = inside.T @ inside / len(x)
        shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean() * torch.eye(len(covariance))
        distances = asked[t].unsqueeze(1) - means
        expected = -0.5 * torch.einsum("mcd,de,mce->mc", distances, torch.linalg.pinv(shrunk), distances)
        # They differ by a term that all classes share.
        assert torch.allclose(found[t].log_softmax(-1), expected.log_softmax(-1), atol=1e-8)
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.numpy(), y.numpy())
        assert found[t].argmax(-1).tolist() == theirs.predict(asked[t].numpy()).tolist()


def test_lda_of_one_example_per_class_is_the_nearest_one():
    seen, labels, asked = problem(shots=1)
    found = classifiers.lda_scores(seen, labels, asked, WAYS, 0.5).argmax(-1)
    nearest = torch.gather(labels, 1, torch.cdist(asked, seen).argmin(-1))
    assert torch.equal(found, nearest)


def test_lda_refuses_a_covariance_without_inverse():
    with pytest.raises(ValueError, match=r"shrinkage=0\.0: expected more than 0 and at most 1"):
        classifiers.lda_scores(*problem(), WAYS, 0.0)


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_logistic_regression_in_the_span_is_that_of_all_channels(c):
    seen, labels, asked = problem()
    reduced, asked_reduced = classifiers.in_span(seen, asked)
    assert reduced.shape[-1] == WAYS * SHOTS < seen.shape[-1]
    for t in range(2):
        y, fit = labels[t].numpy(), lambda x, y: LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.numpy(), y)
        whole, part = fit(seen[t], y), fit(reduced[t], y)
        probabilities = whole.predict_proba(asked[t].numpy()), part.predict_proba(asked_reduced[t].numpy())
        assert np.allclose(*probabilities, atol=1e-6)
    both = [classifiers.logistic_logits(seen, labels, asked, c, reduce).argmax(-1) for reduce in (False, True)]
    assert torch.equal(*both)


def test_channel_weights_follow_ratio_and_evidence():
    seen, labels, _ = problem()
    means = torch.stack([torch.stack([seen[t][labels[t] == c].mean(0) for c in range(WAYS)]) for t in range(2)])
    inside = torch.stack([(seen[t] - means[t][labels[t]]).square().mean(0) for t in range(2)])
    ratio = (means.var(1, correction=0) + classifiers.RATIO_FLOOR) / (inside + classifiers.RATIO_FLOOR)
    assert torch.allclose(classifiers.fisher_ratio(seen, labels, WAYS), ratio)
    losses = classifiers.level_losses(seen, labels, WAYS, WIDTHS)
    assert losses.shape == (2, 3)
    assert losses[0].argmin() != losses[0].argmax()
    plain, by_ratio, by_level = (
        classifiers.channel_weights(seen, labels, WAYS, WIDTHS, p) for p in ((0, 0), (0.5, 0), (0, 2))
    )
    assert torch.equal(plain, torch.ones_like(plain))
    assert torch.allclose(by_ratio / by_ratio[:, :1], (ratio / ratio[:, :1]).sqrt())
    levels = torch.stack([w[:, 0] for w in by_level.split(WIDTHS, 1)], 1)
    assert torch.allclose(levels / levels[:, :1], torch.exp(-2 * (losses - losses[:, :1])))
    assert torch.allclose(by_level.square().mean(1), torch.ones(2).double())


def test_the_level_that_tells_classes_apart_has_the_lowest_loss():
    seen, labels, _ = problem()
    seen[..., :5] += 9 * F.one_hot(labels, 5)
    assert (classifiers.level_losses(seen, labels, WAYS, WIDTHS).argmin(1) == 0).all()


def test_one_example_per_class_says_nothing_of_a_level():
    seen, labels, _ = problem(shots=1)
    assert not classifiers.level_losses(seen, labels, WAYS, WIDTHS).any()
