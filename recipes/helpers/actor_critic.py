"""An actor-critic for CartPole: its networks, generalised advantages, and the loss of an update.

Everything has a leading axis of agents, which are trained at once and know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.metagrad.tensors import Tensors

REWARD = 0.02  # of a step, so that values are about one
INNER, OUTER = 0, 1  # outputs of the critic


@dataclass(frozen=True)
class Balancing:
    """Settings of the agents.

    Args:
        agents: that share what is learned: their meta-gradients are averaged.
        environments: of each agent.
        rollout: steps of each environment between two updates.
        steps: N, updates per outer step.
        hidden: units of the policy's and of the critic's hidden layer.
        inner_lr: step size of the networks.
        outer_lr: of Adam on the logits of discount and trace.
        discount: of the outer loss.
        trace: of the outer loss.
        critic: weight of the critic's loss.
        entropy: weight of the policy's entropy.
    """

    agents: int = 4
    environments: int = 8
    rollout: int = 128
    steps: int = 4
    hidden: int = 32
    inner_lr: float = 0.3
    outer_lr: float = 0.3
    discount: float = 0.99
    trace: float = 1.0
    critic: float = 2.0
    entropy: float = 0.01


def initial_weights(seeds: Sequence[int], hidden: int) -> Tensors:
    """Of policies and critics; agents of the same seed start alike."""

    def draw(seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        layer = lambda n, m, gain: gain * torch.randn(n, m, generator=generator) / n**0.5  # noqa: E731
        return {
            "policy.1": layer(4, hidden, 1.4),
            "policy.bias": torch.zeros(1, hidden),
            "policy.2": layer(hidden, 2, 0.1),
            "critic.1": layer(4, hidden, 3.0),
            # The value of a state is that of its mirror image, which tanh without a bias cannot say.
            "critic.bias": torch.randn(1, hidden, generator=generator),
            "critic.2": layer(hidden, 2, 0.1),
            "critic.mean": torch.zeros(1, 2),
        }

    rows = [draw(seed) for seed in seeds]
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def log_policy(weights: Tensors, observations: Tensor) -> Tensor:
    """``(agents, n, 4) -> (agents, n, 2)``."""
    hidden = torch.tanh(observations @ weights["policy.1"] + weights["policy.bias"])
    return (hidden @ weights["policy.2"]).log_softmax(-1)


def values(weights: Tensors, observations: Tensor) -> Tensor:
    """``(agents, n, 4) -> (agents, n, 2)``, by the inner and the outer discount."""
    hidden = torch.tanh(observations @ weights["critic.1"] + weights["critic.bias"])
    return hidden @ weights["critic.2"] / hidden.shape[-1] ** 0.5 + weights["critic.mean"]


def advantages(value: Tensor, drawn: Tensors, discount: Tensor, trace: Tensor) -> Tensor:
    """Generalised advantages ``(agents, steps, environments)`` of values with one more step; differentiable in discount
    and trace, ``(agents,)``."""
    discount, trace = discount[:, None], trace[:, None]
    found, ahead = [], torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1] - 1)):
        error = REWARD + discount * drawn["alive"][:, t] * value[:, t + 1] - value[:, t]
        ahead = error + discount * trace * drawn["goes_on"][:, t] * ahead
        found.append(ahead)
    return torch.stack(found[::-1], 1)


def mean(x: Tensor, drawn: Tensors) -> Tensor:
    """Over the valid steps of each agent."""
    return (x * drawn["valid"]).sum((1, 2)) / drawn["valid"].sum((1, 2))


def standardised(x: Tensor, drawn: Tensors) -> Tensor:
    """Zero mean and unit variance for each agent: discounts then decide which actions are good, not how far to step."""
    centred = x - mean(x, drawn)[:, None, None]
    return centred / mean(centred**2, drawn).sqrt().clamp_min(1e-4)[:, None, None]


def on_steps(function: str, weights: Tensors, observations: Tensor) -> Tensor:
    """Policy or values at ``(agents, steps, environments, 4)``."""
    network = {"policy": log_policy, "values": values}[function]
    return network(weights, observations.flatten(1, 2)).unflatten(1, observations.shape[1:3])


def policy_loss(weights: Tensors, drawn: Tensors, advantage: Tensor, entropy: float) -> Tensor:
    found = on_steps("policy", weights, drawn["observations"][:, :-1])
    likelihood = found.gather(-1, drawn["actions"][..., None])[..., 0]
    bonus = -(found.exp() * found).sum(-1)
    return -mean(standardised(advantage, drawn) * likelihood + entropy * bonus, drawn)


def agent_loss(weights: Tensors, drawn: Tensors, discount: Tensor, trace: Tensor, settings: Balancing) -> Tensor:
    """Of every agent's policy and critic, ``(agents,)``; ``discount`` and ``trace`` are the agents' own."""
    value = on_steps("values", weights, drawn["observations"])
    fixed = value.detach()
    gains = advantages(fixed[..., INNER], drawn, discount, trace)
    targets = torch.stack([gains, outer_advantages(value, drawn, settings)], -1) + fixed[:, :-1]
    critic = mean((targets - value[:, :-1]).square().sum(-1), drawn)
    return policy_loss(weights, drawn, gains, settings.entropy) + settings.critic * critic


def outer_advantages(value: Tensor, drawn: Tensors, settings: Balancing) -> Tensor:
    """Advantages by the outer critic, as :func:`advantages`."""
    ones = torch.ones(len(value))
    return advantages(value[..., OUTER].detach(), drawn, settings.discount * ones, settings.trace * ones)
