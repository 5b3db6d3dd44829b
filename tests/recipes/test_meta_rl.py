"""meta_rl.py: discounts are learned through the agent's own updates, on DiscountingChain and on CartPole."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch
from helpers import discounting_chain
from helpers.discounting_chain import AT_ONCE, DELAYS, REWARDS, Learning

import mtl.metagrad as metagrad


def test_values_of_the_chain_are_those_of_a_walk_along_it():
    discount = torch.tensor([0.9, 0.97, 1.0])
    values = AT_ONCE + discount[:, None] * discounting_chain.later_values(discount)
    for chain, (delay, reward) in enumerate(zip(DELAYS, REWARDS, strict=True)):
        walked = torch.zeros(3)
        for step in reversed(range(1, 101)):
            walked = (reward if step == delay else 0.0) + (discount * walked if step <= 100 else 0.0)
        assert torch.allclose(values[:, chain], walked, rtol=1e-5)


def test_drawn_chains_have_the_odds_of_the_policy():
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5, 0.2]])
    shares = discounting_chain.picked(logits, torch.linspace(0, 1, 10_001)[None])
    assert torch.allclose(shares, logits.softmax(1), atol=1e-3)


def test_the_mean_over_batches_is_the_true_meta_gradient():
    logits = discounting_chain.half_way(100, 0.99, Learning(inner_lr=10.0))
    uniforms = torch.rand(3, 3000, 128, generator=torch.Generator().manual_seed(0))
    where = (logits, 0.99)
    true = discounting_chain.meta_gradients(metagrad.Exact(), *where, uniforms[:, :1], Learning(), expected=True)
    found = discounting_chain.meta_gradients(metagrad.Exact(), *where, uniforms, Learning()) / true
    assert float(found.mean()) == pytest.approx(1, abs=4 * float(found.std()) / 3000**0.5)


def test_the_outer_critic_decides_where_the_discount_goes():
    learning = Learning(inner_lr=20.0)
    curve = discounting_chain.train(metagrad.Rematerialised(), [True, False], 0.95, 1, 600, learning, seed=0)
    assert curve.discounts[-1, 0] > 0.997
    assert curve.discounts[-1, 1] < 0.92


@pytest.mark.parametrize("part", ["chain", "estimators"])
def test_chain_compares_critics_and_estimators(part, tmp_path):
    import meta_rl

    options = {"chain": meta_rl.Chain(updates=16), "estimators": meta_rl.Estimators(updates=16)}
    rows = meta_rl.main(meta_rl.Config(part=part, **options, seeds=2, out=str(tmp_path)))
    agents = {"chain": ["outer critic", "no outer critic"], "estimators": ["multi-step", "mixing (0.7)"]}
    assert [row["agent"] for row in rows[:2]] == agents[part]
    assert len(list(csv.DictReader((tmp_path / f"{part}.csv").open()))) == len(rows)
    assert (tmp_path / f"{part}.png").stat().st_size > 10_000


def test_mixing_has_less_variance_than_multi_step(tmp_path):
    import meta_rl

    noise = meta_rl.Noise(steps=(1, 8), updates=5)
    rows = meta_rl.main(meta_rl.Config(part="noise", noise=noise, out=str(tmp_path)))
    at = {(row["estimator"], row["N"]): row for row in rows}
    assert at["mixing (0.7)", 8]["deviation"] ** 2 < at["multi-step", 8]["deviation"] ** 2 / 3
    assert at["mixing (0.7)", 1]["deviation"] == at["multi-step", 1]["deviation"]
    assert (tmp_path / "noise.png").stat().st_size > 10_000


def test_cartpole_learns_discount_and_trace(tmp_path):
    pytest.importorskip("gymnasium", reason='pip install "mtl[rl]"')
    import meta_rl
    from helpers.actor_critic import Balancing

    small = Balancing(agents=2, environments=4, rollout=16)
    cartpole = meta_rl.CartPole(rounds=30, discounts=(0.9,), traces=(0.95,), settings=small)
    config = meta_rl.Config(part="cartpole", cartpole=cartpole, seeds=2, out=str(tmp_path))
    fixed, discount, both = meta_rl.main(config)
    assert (fixed["discount"], fixed["trace"]) == pytest.approx((0.9, 0.95))
    assert discount["discount"] > 0.6
    assert discount["trace"] == pytest.approx(0.95)
    assert both["trace"] > 0.6
    assert min(fixed["length"], discount["length"], both["length"]) > 40  # at random: 22
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000


def test_agents_of_a_group_share_what_they_learn_and_nothing_else():
    pytest.importorskip("gymnasium", reason='pip install "mtl[rl]"')
    from helpers.actor_critic import Balancing
    from helpers.cartpole import Kind, train

    seen: list[dict[str, torch.Tensor]] = []

    class Noted(metagrad.AbstractEstimator):
        def __call__(self, problem, meta):
            seen.append(meta)
            found = metagrad.Rematerialised()(problem, meta)
            against = torch.tensor([1.0, -2.0, -2.0]).repeat(4) * torch.arange(1.0, 5).repeat_interleave(3)
            return replace(found, grads=found.grads | {"discount": against})

    kinds = [Kind("fixed", 0.9, 0.95), Kind("learned", 0.5, 0.95, ("discount",))]
    settings = Balancing(agents=3, environments=4, rollout=8)
    train(Noted(), kinds, 2, 3, settings, 0)
    last = seen[-1]["discount"].view(2, 2, 3)
    assert (last[0] == last[0, 0, 0]).all()
    assert (last[1] == last[1, :, :1]).all()
    assert (last[1] > 0.1).all(), "by the mean of their meta-gradients, whose first one says the opposite"


def test_an_episode_that_is_cut_off_is_worth_what_its_last_state_is():
    from helpers.actor_critic import REWARD, advantages

    value = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1)
    flags = lambda *f: torch.tensor([float(v) for v in f]).view(1, 2, 1)  # noqa: E731
    half, one = torch.tensor([0.5]), torch.ones(1)
    cut = advantages(value, {"alive": flags(1, 1), "goes_on": flags(0, 1)}, half, one)
    assert float(cut[0, 0, 0]) == pytest.approx(REWARD + 0.5 * 2 - 1)
    fallen = advantages(value, {"alive": flags(0, 1), "goes_on": flags(0, 1)}, half, one)
    assert float(fallen[0, 0, 0]) == pytest.approx(REWARD - 1)


def test_lengths_are_those_of_finished_episodes():
    pytest.importorskip("gymnasium", reason='pip install "mtl[rl]"')
    from helpers.actor_critic import initial_weights
    from helpers.cartpole import RollOuts

    rollouts = RollOuts(2, 1, 80, seed=0)
    drawn = rollouts(initial_weights([0, 1], 8))
    for agent in range(2):
        ends = (drawn["goes_on"][agent, :, 0] == 0).nonzero().flatten().tolist()
        assert len(ends) > 1
        # One step from a state of its own to the fall, and one between, that starts anew, which is nobody's.
        assert rollouts.finished[agent, 0].tolist() == [ends[-1] + 1 - (len(ends) - 1), len(ends)]
