"""Policies for CartPoles of unlike physics, and what training on some of them would do to all: PolicyGradEx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from helpers.actor_critic import INNER, Balancing, advantages, agent_loss, log_policy, on_steps, standardised
from helpers.cartpole import RollOuts
from mtl.fewshot.affinity import Linearised, fit
from mtl.metagrad import tensors
from mtl.metagrad.tensors import Tensors
from mtl.tools.progress import ProgressBar

LONGEST = 500  # steps of an episode
APART = 3  # steps between those that an estimate takes: neighbours say much the same
POLICY = ("policy.1", "policy.bias", "policy.2")  # what is linear in an estimate


@dataclass(frozen=True)
class Physics:
    """A kind of CartPole: half the pole's length, and how hard the cart is pushed."""

    length: float
    force: float

    @property
    def name(self) -> str:
        return f"length {self.length:g}, force {self.force:g}"


def roll_outs(given: Sequence[Sequence[Physics]], settings: Balancing, seed: int) -> RollOuts:
    """Environments of several agents, each with kinds of its own in turn."""
    rows = [[kinds[i % len(kinds)] for i in range(settings.environments)] for kinds in given]
    length, force = (np.array([[getattr(k, name) for k in row] for row in rows]) for name in ("length", "force"))
    return RollOuts(len(given), settings.environments, settings.rollout, seed, length=length, force=force)


def improve(
    weights: Tensors, given: Sequence[Sequence[Physics]], updates: int, discount: float, settings: Balancing, seed: int
) -> Tensors:
    """Policies and critics after some updates, each agent on its own kinds."""
    rollouts, ones = roll_outs(given, settings, seed), torch.ones(len(given))
    for _ in ProgressBar(range(updates), desc=f"{len(given)} policies", unit="update"):
        drawn = rollouts(weights)
        free = tensors.leaf(weights)
        loss = agent_loss(free, drawn, discount * ones, settings.trace * ones, settings).sum()
        (slopes,) = tensors.grad(loss, free)
        weights = {k: v - settings.inner_lr * slopes[k] for k, v in weights.items()}
    return weights


def lengths(weights: Tensors, given: Sequence[Physics], episodes: int, settings: Balancing, seed: int) -> Tensor:
    """Mean length of some episodes of every agent on every kind, ``(agents, kinds)``."""
    agents = len(weights["policy.1"])
    whole = replace(settings, environments=episodes * len(given), rollout=LONGEST)
    goes_on = roll_outs([given] * agents, whole, seed)(weights)["goes_on"]
    return (1 + goes_on.cumprod(1).sum(1).clamp_max(LONGEST - 1)).unflatten(1, (episodes, len(given))).mean(1)


@dataclass(frozen=True)
class Steps:
    """Steps of one policy in one kind: margins and their gradients, and how each action turned out."""

    linear: Linearised
    signs: Tensor
    sizes: Tensor

    @staticmethod
    def cat(parts: Sequence[Steps]) -> Steps:
        linear = Linearised.cat([p.linear for p in parts])
        return Steps(linear, torch.cat([p.signs for p in parts]), torch.cat([p.sizes for p in parts]))

    def change(self, penalty: float) -> Tensor:
        """Of the policy, by logistic regression."""
        return fit(self.linear, penalty, labels=self.signs, weights=self.sizes)

    def loss(self, change: Tensor) -> float:
        """Weighted logistic loss after a change."""
        wrong = torch.nn.functional.softplus(-self.signs * self.linear.after(change))
        return float((self.sizes * wrong).mean())


def steps_of(weights: Tensors, kind: Physics, discount: float, settings: Balancing, seed: int) -> Steps:
    """Some steps of a roll-out of one agent: sign and size of the advantage, standardised."""
    drawn = roll_outs([[kind]], settings, seed)(weights)
    with torch.no_grad():
        value = on_steps("values", weights, drawn["observations"])[..., INNER]
        ones = torch.ones(1)
        found = standardised(advantages(value, drawn, discount * ones, settings.trace * ones), drawn)
    valid = drawn["valid"].bool() & (torch.arange(settings.rollout) % APART == 0)[:, None]
    policy = {k: weights[k] for k in POLICY}

    def margin(policy: Tensors, observation: Tensor, action: Tensor) -> Tensor:
        left, right = log_policy(policy, observation[None, None])[0, 0]
        return torch.where(action == 1, right - left, left - right)

    observations, actions = drawn["observations"][:, :-1][valid], drawn["actions"][valid]
    slopes = vmap(grad(margin), (None, 0, 0))(policy, observations, actions)
    margins = vmap(margin, (None, 0, 0))(policy, observations, actions)
    return Steps(Linearised(margins.detach(), tensors.flat(slopes).detach()), found[valid].sign(), found[valid].abs())
