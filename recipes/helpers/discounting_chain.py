"""DiscountingChain (bsuite) as tensors: the first action picks one of five chains, each with a single, late reward.

One chain pays more than the others, after 30 steps: only an agent that hardly discounts prefers it. The first action
decides everything, so a roll-out is a draw of first actions, and values have a closed form. The policy is a softmax of
five logits. A discount per agent, ``0.9 + 0.1 * sigmoid(eta)``, is the meta-parameter (arXiv 2111.00206, 2211.10550).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.metagrad import AbstractEstimator, InnerProblem, InnerSGD, solve
from mtl.metagrad.tensors import Tensors
from mtl.tools.progress import ProgressBar

DELAYS = torch.tensor([1.0, 3.0, 10.0, 30.0, 100.0])  # steps until a chain pays
REWARDS = torch.tensor([1.0, 1.0, 1.0, 1.1, 1.0])
AT_ONCE = torch.where(DELAYS == 1, REWARDS, 0.0)
EPISODE = 100  # steps; a mean over them, of which one matters
STEEPEST = 6.0  # largest absolute eta: beyond, the sigmoid is so flat that a discount could not turn back


@dataclass(frozen=True)
class Learning:
    """Settings of an agent.

    Args:
        episodes: of a roll-out.
        inner_lr: step size of the policy.
        outer_lr: step size of Adam on ``eta``.
        entropy: weight of the policy's entropy.
    """

    episodes: int = 128
    inner_lr: float = 0.5
    outer_lr: float = 0.1
    entropy: float = 0.005


def discount_of(meta: Tensors) -> Tensor:
    """Discounts of the agents, from 0.9 to 1."""
    return 0.9 + 0.1 * meta["eta"].sigmoid()


def eta_of(discount: float, agents: int) -> Tensor:
    return torch.full((agents,), (discount - 0.9) / 0.1).logit()


def return_of(logits: Tensor) -> Tensor:
    """Expected undiscounted return of each agent."""
    return logits.softmax(1) @ REWARDS


def later_values(discount: Tensor) -> Tensor:
    """Value of the state after the first step of every chain, ``(agents, chains)``."""
    return torch.where(DELAYS > 1, REWARDS * discount[:, None] ** (DELAYS - 2).clamp_min(0), 0.0)


def start_value(logits: Tensor, discount: Tensor) -> Tensor:
    """Value of the start under the policy, ``(agents, 1)``."""
    values = AT_ONCE + discount[:, None] * later_values(discount)
    return (logits.softmax(1) * values).sum(1, keepdim=True)


def picked(logits: Tensor, uniform: Tensor) -> Tensor:
    """Fraction of the episodes in which each agent picked each chain; ``uniform`` is ``(agents, episodes)``."""
    edges = logits.softmax(1).cumsum(1)[:, :-1]
    actions = (uniform[:, :, None] > edges[:, None]).sum(2)
    return F.one_hot(actions, len(DELAYS)).float().mean(1)


def chain_problem(
    start: Tensors, uniforms: Tensor, outer_critic: Tensor, learning: Learning, expected: bool = False
) -> InnerProblem:
    """N policy-gradient steps, judged by one more roll-out.

    Args:
        start: ``logits`` of the policies, ``(agents, chains)``.
        uniforms: ``(N + 1, agents, episodes)`` random numbers, one slice for each roll-out.
        outer_critic: ``(agents,)``, whether the outer loss has values of its own, undiscounted; else it has the
            inner ones, with which a learned discount prefers what they overrate: early rewards.
        expected: the mean over infinitely many episodes, differentiated through the policy that they are drawn with
            as well: the true meta-gradient, which no sample gives.
    """
    steps = len(uniforms) - 1

    def sample(weights: Tensors, meta: Tensors, step: int) -> Tensors:
        value = start_value(weights["logits"], discount_of(meta))
        return {"picked": picked(weights["logits"], uniforms[step]), "value": value}

    def surrogate(weights: Tensors, shares: Tensor, advantages: Tensor) -> Tensor:
        if expected:
            return -(weights["logits"].softmax(1) * advantages).sum(1) / EPISODE
        return -(shares * advantages * weights["logits"].log_softmax(1)).sum(1) / EPISODE

    def inner_loss(weights: Tensors, meta: Tensors, step: int, drawn: Tensors) -> Tensor:
        discount = discount_of(meta)
        values = later_values(discount.detach())  # a critic's output; the discount acts on it, not through it
        advantages = AT_ONCE + discount[:, None] * values - drawn["value"]
        log_policy = weights["logits"].log_softmax(1)
        entropy = -(log_policy.exp() * log_policy).sum(1)
        return surrogate(weights, drawn["picked"], advantages) - learning.entropy * entropy / EPISODE

    def outer_loss(weights: Tensors, meta: Tensors) -> Tensor:
        critic = torch.where(outer_critic, 1.0, discount_of(meta).detach())
        logits = weights["logits"].detach()
        advantages = AT_ONCE + later_values(critic) - start_value(logits, critic)  # the outer discount is one
        return surrogate(weights, picked(logits, uniforms[steps]), advantages)

    return InnerProblem(lambda meta: start, inner_loss, outer_loss, steps, InnerSGD(learning.inner_lr), sample=sample)


@dataclass(frozen=True)
class Curve:
    """Discount and return of the agents, ``(points, agents)``, after so many ``updates``."""

    updates: list[int]
    discounts: Tensor
    returns: Tensor

    def of(self, agents: slice) -> Curve:
        """The same of some agents."""
        return Curve(self.updates, self.discounts[:, agents], self.returns[:, agents])


def train(
    estimator: AbstractEstimator,
    outer_critic: Sequence[bool],
    discount: float,
    steps: int,
    updates: int,
    learning: Learning,
    seed: int,
) -> Curve:
    """Learn policy and discount together, one agent for each entry of ``outer_critic``; an outer step every ``steps``
    of the ``updates``."""
    agents, generator = len(outer_critic), torch.Generator().manual_seed(seed)
    critic, logits, eta = torch.tensor(outer_critic), torch.zeros(agents, len(DELAYS)), eta_of(discount, agents)
    outer = torch.optim.Adam([eta], learning.outer_lr, eps=1e-16)  # meta-gradients here are about 1e-9
    rounds, points = max(1, updates // steps), []
    for i in ProgressBar(range(rounds), desc=f"chain, N = {steps}"):
        uniforms = torch.rand(steps + 1, agents, learning.episodes, generator=generator)
        result = estimator(chain_problem({"logits": logits}, uniforms, critic, learning), {"eta": eta})
        eta.grad, logits = result.grads["eta"], result.weights["logits"]
        outer.step()
        eta.clamp_(-STEEPEST, STEEPEST)
        if i % max(1, rounds // 200) == 0 or i == rounds - 1:
            points.append(((i + 1) * steps, discount_of({"eta": eta}), return_of(logits)))
    at, discounts, returns = zip(*points, strict=True)
    return Curve(list(at), torch.stack(discounts), torch.stack(returns))


def half_way(updates: int, discount: float, learning: Learning) -> Tensor:
    """Logits of an agent after so many updates on average, with a fixed discount."""
    logits, eta = torch.zeros(1, len(DELAYS)), eta_of(discount, 1)
    uniforms, critic = torch.zeros(2, 1, 1), torch.tensor([True])
    for _ in ProgressBar(range(updates), desc="policy"):
        problem = chain_problem({"logits": logits}, uniforms, critic, learning, expected=True)
        logits = solve(problem, {"eta": eta})["logits"]
    return logits


def meta_gradients(
    estimator: AbstractEstimator,
    logits: Tensor,
    discount: float,
    uniforms: Tensor,
    learning: Learning,
    expected: bool = False,
) -> Tensor:
    """Meta-gradients of ``eta`` towards a higher return, one for each of ``uniforms`` ``(N + 1, batches, episodes)``.

    Args:
        logits: ``(1, chains)``, where all start.
    """
    batches = uniforms.shape[1]
    start, critic = {"logits": logits.expand(batches, -1)}, torch.ones(batches, dtype=torch.bool)
    problem = chain_problem(start, uniforms, critic, learning, expected)
    return -batches * estimator(problem, {"eta": eta_of(discount, batches)}).grads["eta"]
