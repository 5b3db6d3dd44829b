"""Meta-train on readouts of one frozen network, and compare on new classes and on kinds of question never trained on.

    python recipes/compare_readouts.py --backbone mtl/smollm2 --texts clinc150.jsonl.gz hwu64.jsonl.gz \
        banking77.jsonl.gz --label-columns clinc150:label clinc150:domain hwu64:label hwu64:scenario banking77:label \
        --hold-out-families banking77.label hwu64.scenario

Every example passes through the network once (--cache-dir); training takes minutes of one core after that. The tables
also go to ``--out``. Data sets of images are given by --images, with --img-size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from helpers.readouts import Data, Network, open_network

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountList, Counts, Folder, Positive, Seed, TwoOrMore, complaints_of
from mtl.fewshot import choose_baselines, tune_baselines


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/readouts_compared"  # output folder; run again with the same one to continue
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    backbone: str = "mtl/smollm2"  # the frozen network
    img_size: Count | None = None  # height and width of images, for a timm network
    shots: Counts = (5, 1)  # numbers of shots to test
    training_shots: CountList = (5, 1, 5, 1, 2, 3)  # trained on in turn
    queries: Count = 10  # query examples per class
    steps: Count = 500  # outer steps
    tasks_per_step: Count = 8  # tasks per outer step
    outer_lr: Positive = 2e-3  # peak learning rate
    validation_tasks: Count = 96  # episodes that choose the best generator
    tuning_episodes: Count = 60  # validation episodes that choose the setting of a baseline
    test_episodes: TwoOrMore = 300  # of each number of shots, as many of each family
    baselines: tuple[str, ...] = ("logistic", "logistic_all", "ridge", "ridge_all", "ridge_weighted")  # rows
    seed: Seed = 0  # of weights and episodes

    def contradictions(self) -> Iterator[str]:
        if bool(self.data.images) == bool(self.data.texts):
            yield "name what to compare on: expected either --images or --texts"
        if self.data.images and self.backbone == Config.backbone:
            yield f"--images: {self.backbone} reads texts; name a network that reads images with --backbone"
        yield from complaints_of(lambda: choose_baselines(*self.baselines))


def main(config: Config) -> list[mtl.Comparison]:
    network = open_data(config)
    generator = train(network, config, "channelwise")
    static = train(network, config, "static")
    ours = [
        mtl.learner_method(generator),
        mtl.learner_method(generator, "cross-validated", cross_validate=True),
        mtl.fewshot.static_control(static),
        *mtl.fewshot.controls(generator),
    ]
    found = [compare(network, config, ours, shots) for shots in config.shots]
    for shots, comparison in zip(config.shots, found, strict=True):
        comparison.to_json(Path(config.out) / f"{shots}-shot.json")
        print(f"\n{comparison.table(markdown=True)}")
    return found


def open_data(config: Config) -> Network:
    kind = "images" if config.data.images else "texts"
    divided = config.data.of_kind(kind)
    assert divided is not None, "checked with the options"
    print("\n".join(divided.report))
    options: dict[str, Any] = {} if config.img_size is None else {"img_size": config.img_size}
    return open_network(config.backbone, config.data, divided, **options)


def train(network: Network, config: Config, kind: str) -> mtl.MetaLearner:
    """The best generator of a kind by validation tasks: of unseen families where some are for validation."""
    torch.manual_seed(config.seed)
    generator = mtl.fewshot.make_generator(kind, network.backbone)
    generator.standardise(network.statistics)
    tasks = [network.tasks("train", s, config.queries, config.seed) for s in config.training_shots]
    held_out = [network.tasks("val", s, config.queries) for s in config.shots]
    settings = mtl.TrainingConfig(
        steps=config.steps,
        tasks_per_step=config.tasks_per_step,
        tasks_per_chunk=config.tasks_per_step,
        outer_lr=config.outer_lr,
        validate_every=max(1, config.steps // 5),
        validation_tasks=config.validation_tasks,
        save_every=config.steps,
        self_check=False,
    )
    return mtl.train(
        mtl.MetaLearner(network.backbone, generator),
        mtl.Alternating(tasks, config.tasks_per_step),
        mtl.Alternating(held_out, config.tasks_per_step),
        settings,
        Path(config.out) / kind,
    )


def compare(network: Network, config: Config, ours: list[mtl.fewshot.Method], shots: int) -> mtl.Comparison:
    table = choose_baselines(*config.baselines)
    held_out = network.tasks("val", shots, config.queries)
    methods, _ = tune_baselines(
        network.backbone,
        held_out,
        table=table,
        episodes=config.tuning_episodes,
        statistics=network.statistics,
        folder=f"{config.out}/comparison",
    )
    tests = network.tasks("test", shots, config.queries)
    tasks = mtl.data.EvaluationTasks(tests, -(-config.test_episodes // len(tests.names)))
    found = mtl.evaluate(
        [*ours, *methods],
        tasks,
        episodes=tasks.episodes,
        setting=f"{config.backbone}, {config.data.ways}-way {shots}-shot",
        folder=f"{config.out}/comparison",
    )
    return replace(found, unseen=tests.unseen)


if __name__ == "__main__":
    answer(main, Config)
