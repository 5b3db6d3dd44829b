"""Heads beyond test_learner.py: where they start, and supports that are as small as they may be."""

from __future__ import annotations

import pytest
import sklearn.linear_model
import torch
import torch.nn.functional as F

import mtl
from mtl.fewshot.heads import class_means

UNEQUAL = torch.tensor([[0, 0, 0, 1, 2, 2], [2, 1, 0, 1, 1, 1]])
ONE_SHOT = torch.tensor([[0, 1, 2], [2, 0, 1]])


def draw(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(*labels.shape, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("labels", [UNEQUAL, ONE_SHOT], ids=["unequal", "one shot"])
def test_class_means_are_those_of_a_loop(labels):
    features = draw(labels)
    slow = torch.stack(
        [torch.stack([x[y == c].mean(0) for c in range(3)]) for x, y in zip(features, labels, strict=True)]
    )
    torch.testing.assert_close(class_means(features, labels, 3), slow)


@pytest.mark.parametrize("labels", [UNEQUAL, ONE_SHOT], ids=["unequal", "one shot"])
def test_cosine_starts_as_the_nearest_class_mean_by_angle(labels):
    features, asked, head = draw(labels), draw(torch.zeros(2, 50), seed=1), mtl.Cosine()
    logits = head.logits(asked, head.init(features, labels, 3), (features, labels), 3)
    means = class_means(F.normalize(features, dim=-1), labels, 3)
    torch.testing.assert_close(logits, 10 * F.cosine_similarity(asked.unsqueeze(2), means.unsqueeze(1), dim=-1))


def test_closed_form_heads_on_one_example_per_class():
    """Ridge judges an example by the other classes alone; the nearest mean has nothing but the example itself."""
    features = draw(ONE_SHOT)
    ridge = mtl.Ridge().support_logits({}, (features, ONE_SHOT), 3)
    for i in range(3):
        others = [j for j in range(3) if j != i]
        slow = mtl.Ridge().logits(features[:, [i]], {}, (features[:, others], ONE_SHOT[:, others]), 3)[:, 0]
        torch.testing.assert_close(ridge[:, i], slow)
    own = mtl.NearestClassMean(scale=7).support_logits({}, (features, ONE_SHOT), 3).gather(2, ONE_SHOT.unsqueeze(-1))
    torch.testing.assert_close(own, torch.full_like(own, 7))


def test_ridge_is_ridge_regression():
    """Against the normal equations in the width, which the head never forms."""
    features, head = draw(UNEQUAL), mtl.Ridge(l2=0.3, scale=2)
    x, y = F.normalize(features, dim=-1), F.one_hot(UNEQUAL, 3).double() - 1 / 3
    weight = torch.linalg.solve(x.mT @ x + 0.3 * torch.eye(5, dtype=x.dtype), x.mT @ y).mT
    torch.testing.assert_close(head.as_linear({}, (features, UNEQUAL), 3)[0], 2 * weight)


def test_a_penalty_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"Ridge\(l2=0\): expected a positive, finite number"):
        mtl.Ridge(l2=0)
    with pytest.raises(ValueError, match=r"CentredRidge\(l2=-1\): expected a positive, finite number"):
        mtl.CentredRidge(l2=-1)


@pytest.mark.parametrize("labels", [UNEQUAL, ONE_SHOT], ids=["unequal", "one shot"])
def test_centred_ridge_leaves_one_out_exactly(labels):
    features, head = 3 + 2 * draw(labels), mtl.CentredRidge()
    fast = head.support_logits({}, (features, labels), 3)
    for i in range(labels.shape[1]):
        others = [j for j in range(labels.shape[1]) if j != i]
        slow = head.logits(features[:, [i]], {}, (features[:, others], labels[:, others]), 3)[:, 0]
        torch.testing.assert_close(fast[:, i], slow)


@pytest.mark.parametrize("labels", [UNEQUAL, ONE_SHOT], ids=["unequal", "one shot"])
def test_centred_ridge_is_ridge_regression_with_an_intercept(labels):
    """Against scikit-learn; and its linear classifier has the same logits."""
    features, asked, head = 3 + 2 * draw(labels), draw(torch.zeros(2, 9), seed=1), mtl.CentredRidge(l2=0.3, scale=2)
    found = head.logits(asked, {}, (features, labels), 3)
    for t in range(2):
        reference = sklearn.linear_model.Ridge(alpha=0.3).fit(features[t] / 5**0.5, F.one_hot(labels[t], 3) - 1 / 3)
        expected = 2 * torch.as_tensor(reference.predict(asked[t] / 5**0.5))
        torch.testing.assert_close(found[t], expected)
    weight, bias = head.as_linear({}, (features, labels), 3)
    torch.testing.assert_close(asked @ weight.mT + bias.unsqueeze(1), found)
