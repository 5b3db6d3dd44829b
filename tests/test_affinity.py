"""Task affinity: margins, regression, groups, and families that are known to help each other."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import mtl
from mtl.episode import READOUT
from mtl.fewshot.affinity import Linearised, affinities, draw_subsets, fit, group
from mtl.fewshot.affinity.linearising import LOGITS, SCALE, ChangedBatch, Projection, linearise, margins_of
from mtl.fewshot.affinity.measuring import Affinity
from mtl.metagrad import tensors

WIDTH = 24  # of the features of the tiny network
SIDES = ("left.1", "right.1", "left.2", "right.2", "left.3", "right.3")


class Halves:
    """Finished features: classes differ in one half of the channels, and the other half is noise."""

    def __init__(self, name: str, seed: int) -> None:
        self.left, self.name, self.seed = name.startswith("left"), name, seed

    def sample(self, index: int) -> mtl.Episode:
        g = torch.Generator().manual_seed(1000 * self.seed + index)
        prototypes = torch.randn(3, 1, WIDTH, generator=g)
        prototypes[..., WIDTH // 2 :] *= not self.left
        prototypes[..., : WIDTH // 2] *= self.left
        labels = torch.arange(3)

        def examples(n: int) -> mtl.Examples:
            features = prototypes + torch.randn(3, n, WIDTH, generator=g)
            return mtl.Examples({READOUT: features.flatten(0, 1)[None]}, labels.repeat_interleave(n)[None])

        return mtl.Episode(examples(3), examples(4), 3, (self.name,))


@pytest.fixture(scope="module")
def learner() -> mtl.MetaLearner:
    torch.manual_seed(0)
    backbone = tiny.backbone(sites="none")
    generator = mtl.fewshot.make_generator("static", backbone)
    return mtl.MetaLearner(backbone, generator, mtl.CentredRidge(), inner_steps=0)


def test_the_cross_entropy_is_the_logistic_loss_of_the_margin():
    logits, labels = torch.randn(2, 5, 4), torch.randint(4, (2, 5))
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 5)
    assert torch.allclose(F.softplus(-margins_of(logits, labels)), expected, atol=1e-6)


def test_margins_are_those_of_the_learner(learner):
    episode = tiny.Blobs().sample(0)
    adapted = ChangedBatch(learner, episode)
    logits = learner.adapt(episode.support).logits(episode.query.inputs)
    with torch.no_grad():
        assert torch.allclose(adapted.margins(adapted.no_change), margins_of(logits, episode.query.labels), atol=1e-4)


@pytest.mark.parametrize("name", [SCALE, LOGITS])
def test_linear_answers_are_right_to_first_order(learner, name):
    adapted = ChangedBatch(learner, tiny.Blobs().sample(1))
    zero = adapted.no_change
    torch.manual_seed(1)
    step = {k: (torch.randn_like(v) if k == name else v) for k, v in zero.items()}
    rows = list(adapted.rows())

    def error(length: float) -> float:
        with torch.no_grad():
            true = adapted.margins({k: length * v for k, v in step.items()})[0]
        linear = torch.cat([margins + length * (gradients @ tensors.flat(step)[0]) for margins, gradients in rows])
        return float((true - linear).norm())

    assert error(0.04) > 1e-5, "there is something to be wrong about"
    assert error(0.04) < 0.35 * error(0.08)  # a quarter, for half the distance


def test_inner_steps_are_taken_before_the_change():
    backbone = tiny.backbone()
    generator = mtl.fewshot.make_generator("static", backbone, step_size=0.5)
    learner = mtl.MetaLearner(backbone, generator, mtl.Cosine(), inner_steps=2)
    episode = tiny.Blobs().sample(0)
    adapted = ChangedBatch(learner, episode)
    logits = learner.adapt(episode.support).logits(episode.query.inputs)
    with torch.no_grad():
        assert torch.allclose(adapted.margins(adapted.no_change), margins_of(logits, episode.query.labels), atol=1e-4)
    assert not any(name.startswith("head.") for name in adapted.no_change)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_regression_is_that_of_scikit_learn(weighted):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=g).double(), torch.randn(80, generator=g).sign()
    y[0], y[1] = 1.0, -1.0
    weights = torch.rand(80, generator=g).double() if weighted else torch.ones(80).double()
    found = fit(Linearised(torch.zeros(80).double(), x), 0.1, labels=y, weights=weights)
    peer = LogisticRegression(C=1 / (0.1 * 80), fit_intercept=False, tol=1e-10, max_iter=1000)
    peer.fit(x.numpy(), y.numpy(), sample_weight=weights.numpy())
    assert np.allclose(found.numpy(), peer.coef_[0], atol=1e-4)


def test_margins_are_offsets_of_the_regression():
    g = torch.Generator().manual_seed(0)
    margins, x = torch.randn(50, generator=g).double(), torch.randn(50, 3, generator=g).double()
    found = fit(Linearised(margins, x), 0.01).requires_grad_()
    loss = F.softplus(-(margins + x @ found)).mean() + 0.005 * found.square().sum()
    assert float(torch.autograd.grad(loss, found)[0].norm()) < 1e-4


def test_projections_keep_inner_products_on_average():
    a, b = torch.randn(2, 1, 30)
    found = [float((p(a) * p(b)).sum()) for p in (Projection(20, seed) for seed in range(400))]
    assert abs(np.mean(found) - float((a * b).sum())) < 4 * np.std(found) / 20
    assert torch.equal(Projection(30, 0)(a), a)


@pytest.mark.parametrize("method", ["spectral", "sdp"])
def test_groups_are_the_blocks_of_the_matrix(method):
    if method == "sdp":
        pytest.importorskip("cvxpy")
    blocks = np.array([0, 1, 0, 2, 1, 2, 0, 1, 2])
    rng = np.random.default_rng(0)
    matrix = (blocks[:, None] == blocks) + 0.2 * rng.normal(size=(9, 9))
    assert group(matrix, 3, method).tolist() == blocks.tolist()
    assert group(matrix, 1, method).tolist() == [0] * 9


def test_subsets_hold_every_family_about_equally_often():
    subsets = draw_subsets("abcdefg", 21, 3)
    counts = [sum(name in s for s in subsets) for name in "abcdefg"]
    assert {len(set(s)) for s in subsets} == {3}
    assert max(counts) - min(counts) <= 1


def test_affinities_are_gains_over_the_mean_of_a_row():
    subsets = [("a", "b"), ("a", "c"), ("b", "c")]
    losses = np.array([[1.0, 2.0, 9.0], [3.0, 9.0, 2.0], [9.0, 4.0, 4.0]])
    found = affinities("abc", subsets, losses)
    assert np.allclose(found, [[0, 1, -1], [1, 0, -1], [1, -1, 0]])


@pytest.fixture(scope="module")
def found(learner) -> Affinity:
    families = {name: Halves(name, i) for i, name in enumerate(SIDES)}
    return mtl.affinity(
        learner, families, new={"right.new": Halves("right.new", 9)}, episodes=24, size=2, progress=False
    )


def test_families_that_ask_about_one_half_help_each_other(found, tmp_path):
    assert set(map(frozenset, found.groups(2))) == {frozenset(SIDES[::2]), frozenset(SIDES[1::2])}
    assert found.pick("right.new", found.groups(2)) == SIDES[1::2]
    assert found.loss(found.groups(2)) < found.loss([found.names])
    found.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == ",".join(("family", *SIDES))
    found.figure(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_refusals_say_what_was_expected(learner, found):
    families = {name: Halves(name, i) for i, name in enumerate(SIDES)}
    with pytest.raises(ValueError, match="expected at least 3"):
        mtl.affinity(learner, {"a": families["left.1"]})
    with pytest.raises(ValueError, match="trained on too"):
        mtl.affinity(learner, families, new={"left.1": families["left.1"]})
    with pytest.raises(ValueError, match=r"2 \.\. 5 of the 6"):
        mtl.affinity(learner, families, size=6)
    with pytest.raises(ValueError, match="expected one of"):
        found.pick("up")
    with pytest.raises(ValueError, match=r"1 \.\. 6 groups"):
        found.groups(7)


def test_episodes_of_unequal_shape_are_linearised_too(learner):
    episodes = [tiny.Blobs(ways=3).sample(0), tiny.Blobs(ways=4).sample(1)]
    found = linearise(learner, episodes, Projection(8, 0))
    assert found.margins.shape == (3 * 3 + 4 * 3,)
    assert found.gradients.shape == (21, 8)
