"""Affinity of CartPoles of unlike physics: linear answers of a policy, and the recipe."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("gymnasium", reason='pip install "mtl[rl]"')

from helpers.actor_critic import Balancing, initial_weights, log_policy
from helpers.policies import POLICY, Physics, improve, lengths, roll_outs, steps_of

SMALL = Balancing(environments=6, rollout=40)


def test_physics_are_those_of_each_environment():
    given = [[Physics(0.5, 10.0)], [Physics(0.5, 0.001)], [Physics(50.0, 0.001)]]
    start = {k: v[:1].expand(3, *v.shape[1:]) for k, v in initial_weights([0], 8).items()}
    drawn = roll_outs(given, SMALL, 0)(start)["observations"]
    speed, turn = (drawn[:, 1:4, :, i].diff(dim=1).abs().mean((1, 2)) for i in (1, 3))
    assert speed[0] > 50 * speed[1], "a weak push"
    assert turn[2] < 0.05 * turn[1], "a long pole falls slowly"


def test_linear_answers_are_those_of_the_policy_nearby():
    weights = initial_weights([0], 8)
    steps = steps_of(weights, Physics(0.5, 10.0), 0.99, SMALL, 0)
    drawn = roll_outs([[Physics(0.5, 10.0)]], SMALL, 0)(weights)
    valid = drawn["valid"].bool() & (torch.arange(SMALL.rollout) % 3 == 0)[:, None]
    torch.manual_seed(0)
    change = {k: 1e-3 * torch.randn_like(weights[k]) for k in POLICY}

    def margins(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        found = log_policy(weights, drawn["observations"][:, :-1][valid][None])[0]
        right = found[:, 1] - found[:, 0]
        return torch.where(drawn["actions"][valid] == 1, right, -right)

    assert torch.allclose(steps.linear.margins, margins(weights), atol=1e-5)
    moved = margins(weights | {k: weights[k] + change[k] for k in POLICY}) - margins(weights)
    linear = steps.linear.gradients @ torch.cat([change[k].flatten() for k in POLICY])
    assert float((moved - linear).norm()) < 0.02 * float(moved.norm())
    assert steps.loss(steps.change(1e-3)) < steps.loss(torch.zeros(steps.linear.gradients.shape[1]))


def test_policies_improve_on_their_own_kinds():
    given, start = [[Physics(0.5, 10.0)]] * 2, initial_weights([0, 1], 16)
    trained = improve(start, given, 30, 0.95, SMALL, 0)
    before, after = (lengths(w, given[0], 8, SMALL, 1) for w in (start, trained))
    assert (after > 1.3 * before).all()


def test_the_recipe_groups_and_trains(tmp_path, capsys):
    import policy_affinity

    config = policy_affinity.Config(
        out=str(tmp_path), lengths=(0.25, 2.0), forces=(5.0, 20.0), count=2, updates=2, seeds=2, settings=SMALL
    )
    rows = policy_affinity.main(config)
    assert [row["policies"] for row in rows][:2] == ["where all begin", "one policy for all"]
    assert rows[1]["lead"] == 0
    said = capsys.readouterr().out
    assert all(f"length {length}, force {force}" in said for length in ("0.25", "2") for force in ("5", "20"))
    assert len(list(csv.DictReader((tmp_path / "policies.csv").open()))) == 4
    assert (tmp_path / "affinity.png").stat().st_size > 5_000
