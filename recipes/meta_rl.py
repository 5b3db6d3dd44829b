"""Learn the discount of a reinforcement-learning agent by the meta-gradient through its own updates.

    python recipes/meta_rl.py                      # DiscountingChain with and without outer critic, two minutes
    python recipes/meta_rl.py --part estimators    # the same, through eight updates by every estimator
    python recipes/meta_rl.py --part noise         # how noisy their meta-gradients are
    python recipes/meta_rl.py --part cartpole      # gymnasium's CartPole: pip install "mtl[rl]"
    python recipes/meta_rl.py --part cartpole --cartpole.estimator.estimator windowed

The agent's own loss discounts rewards; the loss that judges it, on a fresh roll-out, does not (arXiv 2111.00206 and
2211.10550). Each step draws a roll-out with its own weights (``InnerProblem(sample=...)``), which the backward sweep
replays. All agents, seeds and fixed discounts to compare with are trained at once, along the task axis.
docs/meta-rl.md reads the tables and pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import torch
from helpers import actor_critic, cartpole, discounting_chain, meta_rl_figures
from torch import Tensor

from mtl import metagrad
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, Counts, Distinct, Folder, Positive, Range, Seed, Share, TwoOrMore
from mtl.tools.files import write_csv

Inside = Annotated[float, Range(0.001, 0.999)]
Discount = Annotated[float, Range(0.9003, 0.9997)]
Row = dict[str, str | float]


@dataclass(frozen=True)
class Chain(Checked):
    updates: Count = 50_000  # updates of the policy, an outer step after each
    episodes: Count = 128  # episodes per roll-out
    inner_lr: Positive = 0.5  # step size of the policy
    outer_lr: Positive = 0.1  # step size of Adam on the logit of the discount
    entropy: Positive = 0.005  # weight of the policy's entropy
    start: Discount = 0.95  # discount at the start

    @property
    def learning(self) -> discounting_chain.Learning:
        return discounting_chain.Learning(self.episodes, self.inner_lr, self.outer_lr, self.entropy)


@dataclass(frozen=True)
class Estimators(Checked):
    start: Discount = 0.99  # discount at the start; from less, several inner steps look too short a way ahead
    steps: Count = 8  # N, updates per outer step
    updates: Count = 25_000  # updates of the policy


@dataclass(frozen=True)
class Noise(Checked):
    steps: Counts = (1, 2, 4, 8, 16)  # N, inner steps of a meta-gradient
    batches: TwoOrMore = 100  # meta-gradients, each of fresh roll-outs
    discount: Discount = 0.99  # where the meta-gradient is taken
    updates: Count = 2000  # age of the policy at which it is taken


@dataclass(frozen=True)
class CartPole(Checked):
    rounds: Count = 160  # outer steps
    discounts: Annotated[tuple[Inside, ...], Distinct()] = (0.5, 0.9, 0.95, 0.99)  # fixed, to compare with
    traces: Annotated[tuple[Inside, ...], Distinct()] = (0.95, 0.99)  # fixed; the first goes with a learned discount
    start: Inside = 0.5  # where learned discounts and traces begin
    settings: actor_critic.Balancing = field(default_factory=actor_critic.Balancing)  # agents and environments
    estimator: metagrad.EstimatorOptions = field(default_factory=lambda: metagrad.EstimatorOptions("rematerialised"))


@dataclass(frozen=True)
class Config(Checked):
    part: Literal["chain", "estimators", "noise", "cartpole"] = "chain"  # what to do
    chain: Chain = field(default_factory=Chain)  # DiscountingChain
    estimators: Estimators = field(default_factory=Estimators)  # DiscountingChain by every estimator
    noise: Noise = field(default_factory=Noise)  # noise of every estimator, on DiscountingChain
    cartpole: CartPole = field(default_factory=CartPole)  # CartPole
    decay: Share = 0.7  # of truncation mixing, where estimators are compared
    window: Count = 4  # of windows, where estimators are compared
    seeds: TwoOrMore = 5  # agents of each kind
    seed: Seed = 0  # seed of the roll-outs
    threads: Count = 1  # CPU threads
    out: Folder = "runs/meta_rl"  # folder for the tables and pictures

    @property
    def compared(self) -> dict[str, metagrad.AbstractEstimator]:
        return {
            "multi-step": metagrad.Rematerialised(),
            f"mixing ({self.decay:g})": metagrad.TruncationMixing(self.decay),
            f"windows of {self.window}": metagrad.Windowed(self.window),
            "last step": metagrad.OneStep(),
        }


def main(config: Config) -> list[Row]:
    torch.set_num_threads(config.threads)
    parts = {"chain": chain_rows, "estimators": estimators_rows, "noise": noise_rows, "cartpole": cartpole_rows}
    rows = parts[config.part](config, Path(config.out) / f"{config.part}.png")
    for row in rows:
        print("   ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    write_csv(rows, Path(config.out) / f"{config.part}.csv")
    return rows


def chain_rows(config: Config, out: Path) -> list[Row]:
    """With and without outer critic."""
    chain, agents = config.chain, config.seeds
    critics, exact = [True] * agents + [False] * agents, metagrad.Rematerialised()
    both = discounting_chain.train(exact, critics, chain.start, 1, chain.updates, chain.learning, config.seed)
    return chain_table({"outer critic": both.of(slice(agents)), "no outer critic": both.of(slice(agents, None))}, out)


def estimators_rows(config: Config, out: Path) -> list[Row]:
    """By every estimator, with outer critic."""
    compared, learning, critics = config.estimators, config.chain.learning, [True] * config.seeds
    learn = lambda e: discounting_chain.train(  # noqa: E731
        e, critics, compared.start, compared.steps, compared.updates, learning, config.seed
    )
    return chain_table({name: learn(estimator) for name, estimator in config.compared.items()}, out)


def chain_table(curves: dict[str, discounting_chain.Curve], out: Path) -> list[Row]:
    """Discount and return at the end, and a picture of the way there."""
    meta_rl_figures.draw_chain(curves, out)
    return [
        {"agent": name, "updates": curve.updates[-1]}
        | spread("discount", curve.discounts[-1])
        | spread("return", curve.returns[-1])
        for name, curve in curves.items()
    ]


def spread(name: str, values: Tensor) -> dict[str, float]:
    """Mean, smallest and largest over seeds."""
    return {name: float(values.mean()), f"least {name}": float(values.min()), f"most {name}": float(values.max())}


def noise_rows(config: Config, out: Path) -> list[Row]:
    """Mean and standard deviation of the meta-gradient over fresh batches, relative to the true one."""
    noise, learning = config.noise, config.chain.learning
    logits = discounting_chain.half_way(noise.updates, noise.discount, learning)
    generator = torch.Generator().manual_seed(config.seed)
    rows: list[Row] = []
    for steps in noise.steps:
        uniforms = torch.rand(steps + 1, noise.batches, learning.episodes, generator=generator)
        where = (logits, noise.discount)
        exact = metagrad.Rematerialised()
        true = discounting_chain.meta_gradients(exact, *where, uniforms[:, :1], learning, expected=True)
        for name, estimator in config.compared.items():
            found = discounting_chain.meta_gradients(estimator, *where, uniforms, learning) / true
            average, deviation = float(found.mean()), float(found.std())
            measures = {"mean": average, "deviation": deviation, "mean over deviation": average / deviation}
            rows.append({"estimator": name, "N": steps} | measures)
    meta_rl_figures.draw_noise(rows, out)
    return rows


def cartpole_rows(config: Config, out: Path) -> list[Row]:
    """Discount and trace at the end, and length of episodes in the last fifth of training, for each kind of agent."""
    options = config.cartpole
    kinds = [
        cartpole.Kind(f"fixed, discount {d:g}, trace {t:g}", d, t)
        for d, t in product(options.discounts, options.traces)
    ]
    kinds.append(cartpole.Kind("learned discount", options.start, options.traces[0], ("discount",)))
    kinds.append(cartpole.Kind("learned discount and trace", options.start, options.start, ("discount", "trace")))
    estimator, settings = options.estimator.build(), options.settings
    progress = cartpole.train(estimator, kinds, config.seeds, options.rounds, settings, config.seed)
    meta_rl_figures.draw_cartpole(progress, kinds, out)
    last = max(1, len(progress.rounds) // 5)
    rows: list[Row] = []
    for i, kind in enumerate(kinds):
        row: Row = {"agent": kind.name}
        row |= {n: float(v[-1, i].mean()) for n, v in (("discount", progress.discounts), ("trace", progress.traces))}
        row |= spread("length", progress.lengths[-last:, i].mean(0))
        rows.append(row | dict(zip(("discount's signal", "trace's signal"), progress.signals[i].tolist(), strict=True)))
    return rows


if __name__ == "__main__":
    answer(main, Config)
