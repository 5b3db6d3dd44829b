"""Which CartPoles to train one policy on together, estimated from a policy for all of them (PolicyGradEx).

    python recipes/policy_affinity.py              # pip install "mtl[rl]"; some minutes

Nine kinds of CartPole differ in the pole's length and in how hard the cart is pushed. A policy is trained on all; the
gradients of its margins, with sign and size of the advantages, estimate what training on a subset would do to every
kind (arXiv 2511.12779). Then policies for the groups found, for random groups and for all, with as many updates each.
docs/affinity.md reads the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from helpers.actor_critic import Balancing, initial_weights
from helpers.policies import Physics, Steps, improve, lengths, steps_of

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, Distinct, Folder, Positive, Seed, Share, TwoOrMore
from mtl.fewshot.affinity import affinities, draw_subsets, group
from mtl.metagrad.tensors import Tensors
from mtl.tools.files import write_csv
from mtl.tools.heat_map import heat_map_figure

Row = dict[str, str | float]
Plans = Mapping[str, Sequence[np.ndarray]]  # by plan, the number of every kind's group, for each seed
ALL = "one policy for all"
JUDGED = 20  # episodes of every kind


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/policy_affinity"  # folder for the table and the heat map
    lengths: Annotated[tuple[Positive, ...], Distinct()] = (0.25, 0.5, 2.0)  # half the pole, in metres
    forces: Annotated[tuple[Positive, ...], Distinct()] = (2.5, 10.0, 40.0)  # of a push, in newtons
    count: TwoOrMore = 3  # groups
    updates: Count = 150  # of the policy for all, and as many of each policy after it
    discount: Share = 0.99  # of all policies
    penalty: Positive = 0.1  # of the regression, times the mean square of the gradients
    seeds: TwoOrMore = 4  # policies of each sort
    seed: Seed = 0  # the first one
    threads: Count = 1  # CPU threads
    settings: Balancing = field(default_factory=lambda: Balancing(environments=18, trace=0.95))  # of all policies


def main(config: Config) -> list[Row]:
    torch.set_num_threads(config.threads)
    out, settings = Path(config.out), config.settings
    kinds = [Physics(*values) for values in product(config.lengths, config.forces)]
    seeds = range(config.seed, config.seed + config.seeds)
    first = initial_weights(seeds, settings.hidden)
    start = improve(first, [kinds] * len(seeds), config.updates, config.discount, settings, config.seed)
    agents = [{k: v[i : i + 1] for k, v in start.items()} for i in range(len(seeds))]
    matrix = np.mean([matrix_of(one, kinds, config, seed) for one, seed in zip(agents, seeds, strict=True)], 0)
    labels = group(matrix, config.count)
    order, names = np.argsort(labels, kind="stable"), [k.name for k in kinds]
    shown, sizes = [names[i] for i in order], np.bincount(labels).tolist()
    title = "What a kind (row) gains from another (column)"
    heat_map_figure(matrix[np.ix_(order, order)], shown, shown, out / "affinity.png", blocks=sizes, title=title)
    for number in range(config.count):
        print(f"group {number + 1}: {'; '.join(names[i] for i in np.flatnonzero(labels == number))}", flush=True)
    rng = np.random.default_rng(config.seed)
    plans = {
        ALL: [np.zeros(len(kinds), int)] * len(seeds),
        "a policy for each group": [labels] * len(seeds),
        "a policy for each random group": [rng.permutation(labels) for _ in seeds],
    }
    rows = rows_of(kinds, lengths_of(kinds, plans, start, config))
    for row in rows:
        print("   ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    write_csv(rows, out / "policies.csv")
    return rows


def matrix_of(weights: Tensors, kinds: Sequence[Physics], config: Config, seed: int) -> np.ndarray:
    """Affinities of the kinds, by the steps of one policy."""
    fitted, judged = (
        [steps_of(weights, kind, config.discount, config.settings, 2 * seed + half) for kind in kinds]
        for half in (0, 1)
    )
    size = float(torch.cat([s.linear.gradients for s in fitted]).square().sum(1).mean())
    places = [str(i) for i in range(len(kinds))]
    subsets = draw_subsets(places, len(kinds) ** 2, max(2, len(kinds) // 3), seed)
    changes = [Steps.cat([fitted[int(i)] for i in subset]).change(config.penalty * size) for subset in subsets]
    return affinities(places, subsets, np.array([[s.loss(change) for s in judged] for change in changes]))


def lengths_of(kinds: Sequence[Physics], plans: Plans, start: Tensors, config: Config) -> dict[str, np.ndarray]:
    """Lengths of episodes on every kind by the policy that has it, ``(seeds, kinds)`` for every plan.

    All policies of all plans are trained at once, each from the policy for all of its seed.
    """
    owners = [(plan, i, g) for plan, seeds in plans.items() for i, own in enumerate(seeds) for g in range(max(own) + 1)]
    given = [[kinds[j] for j in np.flatnonzero(plans[plan][i] == g).tolist()] for plan, i, g in owners]
    begin = {k: torch.stack([v[i] for _, i, _ in owners]) for k, v in start.items()}
    trained = improve(begin, given, config.updates, config.discount, config.settings, config.seed + 1)
    before, after = (lengths(w, kinds, JUDGED, config.settings, config.seed + 2).numpy() for w in (start, trained))
    at = dict(zip(owners, after, strict=True))
    found = {
        plan: np.array([[at[plan, i, int(g)][j] for j, g in enumerate(own)] for i, own in enumerate(seeds)])
        for plan, seeds in plans.items()
    }
    return {"where all begin": before} | found


def rows_of(kinds: Sequence[Physics], found: Mapping[str, np.ndarray]) -> list[Row]:
    """Mean lengths, and the lead over one policy for all: mean over seeds and its interval."""
    rows: list[Row] = []
    for plan, values in found.items():
        lead, half = mtl.tools.mean_interval(values.mean(1) - found[ALL].mean(1))
        row: Row = {"policies": plan, "length": float(values.mean()), "lead": lead, "interval": half}
        rows.append(row | {k.name: float(v) for k, v in zip(kinds, values.mean(0), strict=True)})
    return rows


if __name__ == "__main__":
    answer(main, Config)
