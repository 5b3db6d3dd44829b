"""Which label columns and data sets to train on together, by estimate and by training, and what that is worth.

    python recipes/affinity.py --images fashion/ icons/ emoji/ quickdraw/ --ways 3 --new fashion.season emoji.vendor \
        --label-columns class fashion:baseColour fashion:gender icons:set emoji:vendor emoji:group

Trains a static start on all families, estimates affinities (mtl.affinity), and writes ``affinity.csv`` and a heat map.
Then it checks the estimate: how wrong the linear answers are at some distances, and whether training on ``--subsets``
subsets in full finds the same groups. Last, generators: one for each group, one for all, and one for each of random
groups, on test tasks of the families and of ``--new`` ones, for which the estimate picks a group from their training
part. With ``--seeds 3`` all of it three times, in folders of their own, and leads over all seeds. Every example passes
through the network once (--cache-dir).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from helpers.affinity_checks import compare_with_training, linear_errors
from helpers.family_training import Answers, cells, judge, train
from helpers.readouts import Data, Network, open_network

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountOrZero, Distinct, Folder, Positive, Seed
from mtl.fewshot.affinity import Affinity
from mtl.tools.text_tables import aligned

Groups = Sequence[Sequence[str]]
Trained = tuple[str, str]  # on what, and which generator
Row = list[str]
ALL = "all families"


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/affinity"  # folder for csv files and the heat map
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    backbone: str = "mtl/efficientnet-lite0"  # the frozen network
    img_size: Count | None = 96  # height and width of images
    new: tuple[str, ...] = ()  # families that nothing is trained on
    count: CountOrZero = 0  # groups of families; 0 for the number with the least estimated loss
    shots: Count = 5  # examples per class
    queries: Count = 6  # query examples per class
    steps: Count = 400  # outer steps of the static start on all families
    subsets: CountOrZero = 72  # subsets that are trained on in full, to compare; 0 for none
    subset_steps: Count = 80  # outer steps of each of them
    generators: Annotated[tuple[str, ...], Distinct()] = ("static", "channelwise")  # of each group
    generator_steps: CountOrZero = 250  # outer steps of each generator; 0 for none
    lr: Positive = 4e-3  # peak learning rate of the static start
    generator_lr: Positive = 2e-3  # peak learning rate of the generators
    episodes: Count = 24  # of each family, for the estimate
    test_tasks: Count = 40  # of each family
    seed: Seed = 0  # of weights, episodes and random groups; the first one
    seeds: Count = 1  # how many

    def contradictions(self) -> Iterator[str]:
        yield from self.data.unsaid("estimate affinities of")


def main(config: Config) -> Affinity:
    network, found = open_families(config), dict[Trained, list[Answers]]()
    estimates: list[Affinity] = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = Path(config.out) / (f"seed-{seed}" if config.seeds > 1 else "")
        estimated, answers = one_seed(network, replace(config, out=str(folder), seed=seed))
        estimates.append(estimated)
        for trained, own in answers.items():
            found.setdefault(trained, []).append(own)
        if found:
            show(rows_of(found, estimated.names, estimated.new), Path(config.out) / "generators.csv")
    return estimates[0]


def one_seed(network: Network, config: Config) -> tuple[Affinity, Mapping[Trained, Answers]]:
    """Affinities, written to files, and the answers of all generators."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    tasks = network.tasks("train", config.shots, config.queries, config.seed)
    new = [n for n in tasks.names if any(fnmatchcase(n, pattern) for pattern in config.new)]
    names = [n for n in tasks.names if n not in new]
    static = train(network, tasks, "static", names, config.steps, config.lr, config.seed)
    sources = {n: tasks.sources[n] for n in names}
    found = mtl.affinity(static, sources, new={n: tasks.sources[n] for n in new}, episodes=config.episodes)
    groups = found.groups(config.count or None)
    found.to_csv(out / "affinity.csv")
    found.figure(out / "affinity.png", groups)
    print("\n".join(f"group {i}: {', '.join(members)}" for i, members in enumerate(groups, 1)), flush=True)
    if config.subsets:
        checks = compare_with_training(network, tasks, static, found, config)
        show([*linear_errors(checks), *checks.rows()], out / "checks.csv")
    return found, generators(network, tasks, found, groups, config) if config.generator_steps else {}


def open_families(config: Config) -> Network:
    options: dict[str, Any] = {} if config.img_size is None or config.data.texts else {"img_size": config.img_size}
    return open_network(config.backbone, config.data, config.data.one_kind(), **options)


def generators(
    network: Network, tasks: mtl.data.FamilyTasks, found: Affinity, groups: Groups, config: Config
) -> dict[Trained, Answers]:
    """Answers to test tasks by a generator for all families, for each group, for random groups."""
    test = network.tasks("test", config.shots, config.queries, config.seed)
    episodes = {
        n: [test.sources[n].sample(i) for i in range(config.test_tasks)]
        for n in (*found.names, *found.new)
        if n in test.names
    }
    everything, shuffled = (found.names,), random_groups(groups, config.seed)
    rng = np.random.default_rng(config.seed)
    plans = [
        (ALL, everything, config.generator_steps),
        ("all families, as many steps as all groups", everything, config.generator_steps * len(groups)),
        ("a group each", groups, config.generator_steps),
        ("a random group each", shuffled, config.generator_steps),
    ]
    answers: dict[Trained, Answers] = {}
    for kind in config.generators:
        lr = config.lr if kind == "static" else config.generator_lr
        for title, plan, steps in plans:
            learners = [train(network, tasks, kind, members, steps, lr, config.seed) for members in plan]
            chosen = {n: place(found, n, plan, title, rng) for n in episodes}
            answers[title, kind] = Answers({n: judge(learners[chosen[n]], drawn) for n, drawn in episodes.items()})
    return answers


def rows_of(found: Mapping[Trained, Sequence[Answers]], names: Sequence[str], new: Sequence[str]) -> Iterator[Row]:
    """Accuracy and loss over all seeds, and the paired lead over a generator for all families."""
    yield ["trained on", "generator", "tasks", "accuracy, %", "loss, nats", "accuracy against all, points", "loss"]
    for block, members in (("families", names), ("new families", new)):
        for (title, kind), answers in found.items():
            if members:
                yield [title, kind, block, *cells(answers, found[ALL, kind], members)]


def place(found: Affinity, family: str, plan: Groups, title: str, rng: np.random.Generator) -> int:
    """The group whose generator answers for a family: its own; of a new one what the estimate, or chance, picks."""
    for i, members in enumerate(plan):
        if family in members:
            return i
    if "random" in title:
        return int(rng.integers(len(plan)))
    return min(range(len(plan)), key=lambda i: found.estimator.losses(plan[i])[family])


def random_groups(groups: Groups, seed: int) -> list[tuple[str, ...]]:
    """Groups of the same sizes."""
    names = [n for members in groups for n in members]
    order = iter(np.random.default_rng(seed).permutation(len(names)).tolist())
    return [tuple(names[next(order)] for _ in members) for members in groups]


def show(rows: Iterable[Sequence[str]], path: Path) -> None:
    """Print a table, and write it."""
    rows = [list(row) for row in rows]
    print(f"\n{aligned(rows, True)}", flush=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    answer(main, Config)
