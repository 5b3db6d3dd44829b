"""Actor-critics on gymnasium's CartPole that learn discount and trace while they learn to balance.

All agents share one vectorised environment and one batch of networks, an agent per row of the task axis. Some have a
fixed discount and trace, for comparison; the others learn theirs by the meta-gradient through N updates. A roll-out
goes on where the last one stopped, which it may because an inner problem draws once per step. The outer roll-out of one
round is the first of the next: it was drawn with the same weights, so learning needs no further experience.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.actor_critic import (
    Balancing,
    agent_loss,
    initial_weights,
    log_policy,
    on_steps,
    outer_advantages,
    policy_loss,
)
from mtl.metagrad import AbstractEstimator, InnerProblem, InnerSGD
from mtl.metagrad.tensors import Tensors
from mtl.tools.progress import ProgressBar

OBSERVATION = torch.tensor([2.4, 2.0, 0.21, 2.0])  # sizes of position, velocity, angle and angular velocity
STEEPEST = 6.0  # largest absolute logit of discount and trace, which are 0.9975 there


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


class RollOuts:
    """The environments of all agents, and what is known of finished episodes.

    Args:
        agents: their number.
        environments: of each agent.
        steps: of a roll-out.
        length, force: half the pole's length, and how hard the cart is pushed, ``(agents, environments)``; gymnasium's
            .5 and 10 where not given.

    Raises:
        ImportError: without gymnasium.
    """

    def __init__(
        self,
        agents: int,
        environments: int,
        steps: int,
        seed: int,
        *,
        length: np.ndarray | None = None,
        force: np.ndarray | None = None,
    ) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError('CartPole needs gymnasium: pip install "mtl[rl]"') from error
        self._shape, self._steps = (agents, environments), steps
        count = agents * environments
        self._env = gymnasium.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")
        world: Any = self._env.unwrapped  # its constants may be one for each environment
        if length is not None:
            world.length = length.ravel()
            world.polemass_length = world.masspole * world.length
        if force is not None:
            world.force_mag = force.ravel()
        self._observation = self._scaled(self._env.reset(seed=seed)[0])
        self._over = torch.zeros(self._shape, dtype=torch.bool)
        self._generator = torch.Generator().manual_seed(seed)
        self._age = torch.zeros(self._shape)
        self.finished = torch.zeros(*self._shape, 2)  # episodes since the start: their steps, and their number

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
            self._age += ~self._over
            self.finished = self.finished + torch.stack([self._age * over, over], -1)
            self._age[over] = 0
            self._observation, self._over = self._scaled(observation), over
        observations, actions, valid, alive, goes_on = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        observations = torch.cat([observations, self._observation[:, None]], 1)
        flags = {"valid": valid.float(), "alive": alive.float(), "goes_on": goes_on.float()}
        return {"observations": observations, "actions": actions} | flags


def cartpole_problem(start: Tensors, rollouts: RollOuts, last: list[Tensors], settings: Balancing) -> InnerProblem:
    """N updates of every agent, judged by one more roll-out.

    Args:
        last: the outer roll-out of the round before, if any; that of this round takes its place.
    """

    def sample(weights: Tensors, meta: Tensors, step: int) -> Tensors:
        return last.pop() if step == 0 and last else rollouts(weights)

    def inner_loss(weights: Tensors, meta: Tensors, step: int, drawn: Tensors) -> Tensor:
        return agent_loss(weights, drawn, meta["discount"].sigmoid(), meta["trace"].sigmoid(), settings)

    def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
        with torch.no_grad():
            drawn = rollouts(weights)
            gains = outer_advantages(on_steps("values", weights, drawn["observations"]), drawn, settings)
        last[:] = [drawn]
        return policy_loss(weights, drawn, gains, entropy=0.0)

    optimizer = InnerSGD(settings.inner_lr)
    return InnerProblem(lambda meta: start, inner_loss, outer_loss, settings.steps, optimizer, sample=sample)


@dataclass(frozen=True)
class Progress:
    """By outer step, ``(points, kinds, seeds)``: discount, trace, mean length of episodes that ended since the last.

    ``signals``, ``(kinds, 2)``: how clearly the meta-gradient of one agent in one outer step asks for a larger discount
    and trace: mean over standard deviation, over agents and all outer steps but the first fifth.
    """

    rounds: list[int]
    discounts: Tensor
    traces: Tensor
    lengths: Tensor
    signals: Tensor


def train(
    estimator: AbstractEstimator, kinds: Sequence[Kind], seeds: int, rounds: int, settings: Balancing, seed: int
) -> Progress:
    """Train all agents together.

    Args:
        seeds: groups of agents of each kind; those of a group share what they learn.
        rounds: outer steps, each with N updates.
        seed: the first seed of initial weights, and that of the roll-outs.
    """
    agents = seeds * settings.agents  # of a kind
    weights = initial_weights(list(range(seed, seed + agents)) * len(kinds), settings.hidden)
    rollouts = RollOuts(agents * len(kinds), settings.environments, settings.rollout, seed)
    of_kinds = lambda values: torch.tensor(values).repeat_interleave(seeds)  # noqa: E731
    meta = {"discount": of_kinds([k.discount for k in kinds]), "trace": of_kinds([k.trace for k in kinds])}
    meta = {name: v.logit() for name, v in meta.items()}
    learned = {name: of_kinds([float(name in k.learned) for k in kinds]) for name in meta}
    outer = torch.optim.Adam(meta.values(), settings.outer_lr, eps=1e-12)
    last: list[Tensors] = []
    at, points, pulls, before = [], [], [], rollouts.finished
    for i in ProgressBar(range(1, rounds + 1), desc="outer steps"):
        of_agents = {name: v.repeat_interleave(settings.agents) for name, v in meta.items()}
        result = estimator(cartpole_problem(weights, rollouts, last, settings), of_agents)
        weights = result.weights
        pulls.append(torch.stack([-result.grads[k].view(len(kinds), -1) for k in meta], -1))
        for k, v in meta.items():
            v.grad = result.grads[k].view(-1, settings.agents).mean(1) * learned[k]
        outer.step()
        for v in meta.values():
            v.clamp_(-STEEPEST, STEEPEST)
        if i % max(1, rounds // 40) == 0:
            steps, count = (rollouts.finished - before).view(len(kinds) * seeds, -1, 2).sum(1).unbind(-1)
            before = rollouts.finished
            at.append(i)
            points.append(
                torch.stack([meta["discount"].sigmoid(), meta["trace"].sigmoid(), steps / count.clamp_min(1)])
            )
    discounts, traces, lengths = torch.stack(points, 1).unflatten(2, (len(kinds), seeds))
    later = torch.stack(pulls[len(pulls) // 5 :])
    signals = later.mean((0, 2)) / later.transpose(1, 2).flatten(0, 1).std(0)
    return Progress(at, discounts, traces, lengths, signals)
