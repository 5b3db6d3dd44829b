"""Actor-critics on gymnasium's CartPole that learn discount and trace while they learn to balance.

All agents share one vectorised environment and one batch of networks, an agent per row of the task axis. Some have a
fixed discount and trace, for comparison; the others learn theirs by the meta-gradient through N updates. A roll-out
goes on where the last one stopped, which it may because an inner problem draws once per step. The outer roll-out of one
round is the first of the next: it was drawn with the same weights, so learning needs no further experience.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtl.metagrad import AbstractEstimator, InnerProblem, InnerSGD
from mtl.metagrad.tensors import Tensors
from mtl.tools.progress import ProgressBar

OBSERVATION = torch.tensor([2.4, 2.0, 0.21, 2.0])  # sizes of position, velocity, angle and angular velocity
REWARD = 0.02  # of a step, so that values are about one
STEEPEST = 6.0  # largest absolute logit of discount and trace, which are 0.9975 there
INNER, OUTER = 0, 1  # outputs of the critic


@dataclass(frozen=True)
class Balancing:
    """Settings of the agents.

    Args:
        environments: of each agent.
        rollout: steps of each environment between two updates.
        steps: N, updates per outer step.
        hidden: units of the policy's and of the critic's hidden layer.
        inner_lr: step size of the networks.
        outer_lr: of Adam on the logits of discount and trace.
        discount: of the outer loss; its trace is one.
        critic: weight of the critic's loss.
        entropy: weight of the policy's entropy.
    """

    environments: int = 32
    rollout: int = 32
    steps: int = 4
    hidden: int = 32
    inner_lr: float = 0.3
    outer_lr: float = 0.1
    discount: float = 0.99
    critic: float = 0.5
    entropy: float = 0.01


@dataclass(frozen=True)
class Kind:
    """Agents that differ in their seeds only.

    Args:
        name: of a row in tables.
        discount: at the start.
        trace: at the start.
        learned: which of the two, ``"discount"`` and ``"trace"``, are learned.
    """

    name: str
    discount: float
    trace: float
    learned: tuple[str, ...] = ()


def initial_weights(seeds: Sequence[int], hidden: int) -> Tensors:
    """Of policies and critics; agents of the same seed start alike."""

    def draw(seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        layer = lambda n, m, gain: gain * torch.randn(n, m, generator=generator) / n**0.5  # noqa: E731
        return {
            "policy.1": layer(4, hidden, 1.4),
            "policy.bias": torch.zeros(1, hidden),
            "policy.2": layer(hidden, 2, 0.1),
            "critic.1": layer(4, hidden, 1.4),
            "critic.bias": torch.zeros(1, hidden),
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
    return hidden @ weights["critic.2"] + weights["critic.mean"]


class RollOuts:
    """The environments of all agents, and what is known of finished episodes.

    Args:
        agents: their number.
        environments: of each agent.
        steps: of a roll-out.

    Raises:
        ImportError: without gymnasium.
    """

    def __init__(self, agents: int, environments: int, steps: int, seed: int) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError('CartPole needs gymnasium: pip install "mtl[rl]"') from error
        self._shape, self._steps = (agents, environments), steps
        count = agents * environments
        self._env = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")
        self._observation = self._scaled(self._env.reset(seed=seed)[0])
        self._over = torch.zeros(self._shape, dtype=torch.bool)
        self._generator = torch.Generator().manual_seed(seed)
        self.lived, self.ended = torch.zeros(agents), torch.zeros(agents)  # steps and ends of episodes since the start

    def _scaled(self, observation: np.ndarray) -> Tensor:
        return torch.from_numpy(observation).view(*self._shape, 4) / OBSERVATION

    def _bools(self, flags: np.ndarray) -> Tensor:
        return torch.tensor(flags).view(self._shape)

    def __call__(self, weights: Tensors) -> Tensors:
        """Steps of the current policies: ``(agents, steps, environments)`` each, observations with one more at the end.

        ``valid`` is zero where an environment only starts anew, ``alive`` where the pole fell, ``goes_on`` where the
        episode ended, by a fall or at 500 steps.
        """
        rows = []
        for _ in range(self._steps):
            right = log_policy(weights, self._observation)[..., 1].exp()
            actions = (torch.rand(self._shape, generator=self._generator) < right).long()
            observation, _, fell, stopped, _ = self._env.step(actions.flatten().numpy())
            fell, over = self._bools(fell), self._bools(fell | stopped)
            rows.append((self._observation, actions, ~self._over, ~fell, ~over))
            self.lived, self.ended = self.lived + (~self._over).sum(1), self.ended + over.sum(1)
            self._observation, self._over = self._scaled(observation), over
        observations, actions, valid, alive, goes_on = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        observations = torch.cat([observations, self._observation[:, None]], 1)
        flags = {"valid": valid.float(), "alive": alive.float(), "goes_on": goes_on.float()}
        return {"observations": observations, "actions": actions} | flags


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


def cartpole_problem(start: Tensors, rollouts: RollOuts, last: list[Tensors], settings: Balancing) -> InnerProblem:
    """N updates of every agent, judged by one more roll-out.

    Args:
        last: the outer roll-out of the round before, if any; that of this round takes its place.
    """

    def outer_advantages(value: Tensor, drawn: Tensors) -> Tensor:
        agents = torch.ones(len(value))
        return advantages(value[..., OUTER].detach(), drawn, settings.discount * agents, agents)

    def sample(weights: Tensors, meta: Tensors, step: int) -> Tensors:
        return last.pop() if step == 0 and last else rollouts(weights)

    def inner_loss(weights: Tensors, meta: Tensors, step: int, drawn: Tensors) -> Tensor:
        value = on_steps("values", weights, drawn["observations"])
        fixed = value.detach()
        gains = advantages(fixed[..., INNER], drawn, meta["discount"].sigmoid(), meta["trace"].sigmoid())
        targets = torch.stack([gains, outer_advantages(value, drawn)], -1) + fixed[:, :-1]
        critic = mean((targets - value[:, :-1]).square().sum(-1), drawn)
        return policy_loss(weights, drawn, gains, settings.entropy) + settings.critic * critic

    def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
        with torch.no_grad():
            drawn = rollouts(weights)
            gains = outer_advantages(on_steps("values", weights, drawn["observations"]), drawn)
        last[:] = [drawn]
        return policy_loss(weights, drawn, gains, entropy=0.0)

    optimizer = InnerSGD(settings.inner_lr)
    return InnerProblem(lambda meta: start, inner_loss, outer_loss, settings.steps, optimizer, sample=sample)


@dataclass(frozen=True)
class Progress:
    """By outer step, ``(points, kinds, seeds)``: discount, trace, mean length of the episodes since the last point."""

    rounds: list[int]
    discounts: Tensor
    traces: Tensor
    lengths: Tensor


def train(
    estimator: AbstractEstimator, kinds: Sequence[Kind], seeds: int, rounds: int, settings: Balancing, seed: int
) -> Progress:
    """Train all agents together.

    Args:
        seeds: agents of each kind.
        rounds: outer steps, each with N updates.
        seed: the first seed of initial weights, and that of the roll-outs.
    """
    weights = initial_weights(list(range(seed, seed + seeds)) * len(kinds), settings.hidden)
    rollouts = RollOuts(seeds * len(kinds), settings.environments, settings.rollout, seed)
    of_kinds = lambda values: torch.tensor(values).repeat_interleave(seeds)  # noqa: E731
    meta = {"discount": of_kinds([k.discount for k in kinds]), "trace": of_kinds([k.trace for k in kinds])}
    meta = {name: v.logit() for name, v in meta.items()}
    learned = {name: of_kinds([float(name in k.learned) for k in kinds]) for name in meta}
    outer = torch.optim.Adam(meta.values(), settings.outer_lr, eps=1e-12)
    last: list[Tensors] = []
    at, points, before = [], [], (rollouts.lived, rollouts.ended)
    for i in ProgressBar(range(1, rounds + 1), desc="outer steps"):
        result = estimator(cartpole_problem(weights, rollouts, last, settings), meta)
        weights = result.weights
        for k, v in meta.items():
            v.grad = result.grads[k] * learned[k]
        outer.step()
        for v in meta.values():
            v.clamp_(-STEEPEST, STEEPEST)
        if i % max(1, rounds // 40) == 0:
            length = (rollouts.lived - before[0]) / (rollouts.ended - before[1]).clamp_min(1)
            before = (rollouts.lived, rollouts.ended)
            at.append(i)
            points.append(torch.stack([meta["discount"].sigmoid(), meta["trace"].sigmoid(), length]))
    discounts, traces, lengths = torch.stack(points, 1).unflatten(2, (len(kinds), seeds))
    return Progress(at, discounts, traces, lengths)
