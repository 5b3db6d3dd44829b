"""Train the ready generator, ``mtl/universal``: one rule for the channels of any network, on several networks at once.

    python recipes/train_universal.py --out mtl/fewshot/assets --images fashion/ signs/ drawings/ \
        --texts clinc150.jsonl.gz hwu64.jsonl.gz --label-columns fashion:articleType fashion:baseColour clinc150:label \
        --validation-families textures.class --hold-out-families fashion.gender

All networks share the weights of one ``ChannelWise(per_channel=False)``; each data set has statistics of its own
on each network, as it will when somebody comes with data of one kind. Every example passes through every network once
(--cache-dir), and the training itself, minutes on one core, reads what came out. What is kept is best on new classes
and on --validation-families, kinds of question that were not trained on, which count as much. With --keep-out a network
is left out of training, and the table is of that one: what the generator is worth on a network never seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from helpers.pupils import Pupil, Pupils, first_of, pupils_of, tasks_of
from helpers.readouts import Data, Network, joined, open_network
from torch import Tensor, nn

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountList, CountOrZero, Folder, Positive, Seed, Share
from mtl.fewshot.ready import save_ready
from mtl.tools.comparison import SEEN, UNSEEN
from mtl.tools.progress import ProgressBar

NAME = "universal"
LITES = tuple(f"mtl/efficientnet-lite{size}" for size in range(3))
ROWS = ("logistic", "ridge_all", "ridge_weighted")


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/universal"  # folder for universal.safetensors and universal.json
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    image_backbones: tuple[str, ...] = LITES  # networks that read images
    text_backbones: tuple[str, ...] = ("mtl/minilm", "mtl/mpnet", "mtl/smollm2")  # networks that read texts
    keep_out: tuple[str, ...] = ()  # networks to leave out of the training and to test on instead
    img_size: Count = 96  # height and width of images
    hidden: Count = 64  # width of the generator's layers
    steps: Count = 320  # optimiser steps; each is of one network and one number of shots
    tasks_per_step: Count = 8  # tasks per step
    shots: CountList = (1, 1, 1, 2, 3, 5, 5, 5, 10)  # examples per class, drawn from this list
    queries: Count = 6  # query examples per class
    by_support: Share = 0.25  # share of steps that standardise by the support set alone, as a new network may have to
    lr: Positive = 2e-3  # peak learning rate of AdamW
    warmup: CountOrZero = 30  # steps of linear warm-up, before a cosine decay
    validations: Count = 4  # how often, evenly spaced
    validation_tasks: Count = 12  # episodes of each family, network and number of shots in a validation
    test_tasks: CountOrZero = 20  # episodes of each test family and number of shots; 0 for no table
    seed: Seed = 0  # of weights and episodes

    def contradictions(self) -> Iterator[str]:
        if not self.data.images and not self.data.texts:
            yield "nothing to train on: give --images or --texts"
        if unknown := [n for n in self.keep_out if n not in (*self.image_backbones, *self.text_backbones)]:
            yield f"--keep-out {' '.join(unknown)}: expected some of the networks to train on"


def main(config: Config) -> Path:
    torch.manual_seed(config.seed)
    networks = open_networks(config)
    pupils = pupils_of(networks, config.hidden)
    trained = {name: group for name, group in pupils.items() if name not in config.keep_out}
    started = time.perf_counter()
    validation = train(trained, config)
    facts: dict[str, Any] = {
        "networks": list(trained),
        "families": sorted({f for name in trained for f in networks[name].divided.parts["train"]}),
        "validation": validation,
        "settings": {k: v for k, v in asdict(config).items() if k not in ("out", "data")},
        "seconds": round(time.perf_counter() - started),
    }
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    save_ready(first_of(trained).learner, out / NAME, extra=facts)
    if config.test_tasks:
        facts["test"] = {n: test(networks[n], group, config) for n, group in pupils.items() if tested(n, config)}
        save_ready(first_of(trained).learner, out / NAME, extra=facts)
    return out / f"{NAME}.safetensors"


def tested(name: str, config: Config) -> bool:
    """Whether a network gets a table: those kept out, or all where none is."""
    return not config.keep_out or name in config.keep_out


def open_networks(config: Config) -> dict[str, Network]:
    """All networks, those kept out too, with the families of their kind of data."""
    asked = {"images": config.image_backbones, "texts": config.text_backbones}
    found: dict[str, Network] = {}
    for kind, names in asked.items():
        divided = config.data.of_kind("images" if kind == "images" else "texts")
        if divided is None:
            continue
        print("\n".join(divided.report))
        options: dict[str, Any] = {"img_size": config.img_size} if kind == "images" else {}
        for name in names:
            parts = ("train", "val", "test") if config.test_tasks and tested(name, config) else ("train", "val")
            found[name] = open_network(name, config.data, divided, parts, **options)
    return found


def train(pupils: Pupils, config: Config) -> dict[str, float]:
    """Train the shared weights in place; the best ones by validation stay.

    Returns:
        Their validation accuracies, see :func:`validate`.
    """
    generator = first_of(pupils).learner.generator
    parameters = [p for name, p in generator.named_parameters() if name != "step_sizes_of.log_lr"]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))
    best: tuple[float, dict[str, float], dict[str, Tensor]] = (-math.inf, {}, {})
    bar = ProgressBar(range(config.steps), desc="train", unit="step")
    for step, lesson in zip(bar, lessons(pupils, config), strict=False):
        seen = learn(lesson)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(network=lesson.learner.backbone.name.rpartition("/")[2], accuracy=f"{seen:.2f}")
        if (step + 1) % max(1, config.steps // config.validations) == 0:
            accuracies = validate(pupils, config)
            score = sum(accuracies.values()) / len(accuracies)
            bar.write(f"step {step + 1}: {score:.4f} " + json.dumps({k: round(v, 4) for k, v in accuracies.items()}))
            if score > best[0]:
                best = score, accuracies, {k: v.detach().clone() for k, v in generator.named_parameters()}
    for name, parameter in generator.named_parameters():
        parameter.data.copy_(best[2][name])
    return best[1]


@dataclass(frozen=True)
class Lesson:
    """The tasks of one step, and who is to learn from them."""

    learner: mtl.MetaLearner
    episodes: Sequence[mtl.Episode]


def lessons(pupils: Pupils, config: Config) -> Iterator[Lesson]:
    """Endless lessons: of a network, a data set, a number of shots and a way to standardise, drawn anew for each.

    Networks come equally often, and of their data sets those with more families come more often.
    """
    rng, drawn = np.random.default_rng(config.seed), dict.fromkeys(pupils, 0)
    choices = {
        (name, shots): [
            (pupil, tasks)
            for pupil in group
            if (tasks := tasks_of(pupil, "train", shots, config.queries, config.seed))
            for _ in tasks.names
        ]
        for name, group in pupils.items()
        for shots in set(config.shots)
    }
    while True:
        name, shots = list(pupils)[rng.integers(len(pupils))], config.shots[rng.integers(len(config.shots))]
        pupil, tasks = choices[name, shots][rng.integers(len(choices[name, shots]))]
        at = drawn[name]
        drawn[name] += config.tasks_per_step
        episodes = [tasks.sample(i) for i in range(at, at + config.tasks_per_step)]
        yield Lesson(pupil.by_support if rng.random() < config.by_support else pupil.learner, episodes)


def learn(lesson: Lesson) -> float:
    """Add the gradient of the mean loss to that of the parameters; returns the accuracy on the queries."""
    accuracy = 0.0
    for places, batch in mtl.stack_by_shape(lesson.episodes):
        share = len(places) / len(lesson.episodes)
        accuracy += share * float(lesson.learner.meta_step(batch, weight=share).accuracy.mean())
    return accuracy


def rate(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def validate(pupils: Pupils, config: Config) -> dict[str, float]:
    """Accuracy on new classes of families that are trained on, and on families that are not, each a mean over these."""
    found: dict[str, list[float]] = {}
    for name, group in pupils.items():
        for shots in (5, 1):
            for pupil in group:
                if (tasks := tasks_of(pupil, "val", shots, config.queries)) is None:
                    continue
                every = mtl.data.EvaluationTasks(tasks, config.validation_tasks)
                result = mtl.evaluate(pupil.learner, every, episodes=every.episodes, progress=False)
                for family, part in result.by_family().items():
                    block = UNSEEN if family in tasks.unseen else SEEN
                    found.setdefault(f"{name}, {shots}-shot, {block}", []).append(part.rows[0].accuracy.mean())
    return {key: float(np.mean(values)) for key, values in found.items()}


def test(network: Network, pupils: Sequence[Pupil], config: Config) -> dict[str, float]:
    """Print tables against baselines that were tuned on validation tasks; returns differences by block, in 0 .. 1."""
    lines = {}
    table = mtl.fewshot.choose_baselines(*ROWS)
    for shots in (5, 1):
        held_out = network.tasks("val", shots, config.queries)
        _, best = mtl.fewshot.tune_baselines(
            network.backbone, held_out, table=table, episodes=60, statistics=network.statistics
        )
        parts = [
            compare(p, tasks, table, best, config)
            for p in pupils
            if (tasks := tasks_of(p, "test", shots, config.queries))
        ]
        found = replace(joined(parts), setting=f"{network.backbone.name}, {shots}-shot")
        print(f"\n{found.table(markdown=True)}")
        for block, part in (found.blocks() or {"": found}).items():
            for row in part.rows[1:]:
                lines[f"{shots}-shot, {block}, ahead of {row.method}"] = part.verdict(row.method).difference
    return lines


def compare(
    pupil: Pupil,
    tasks: mtl.data.FamilyTasks,
    table: Mapping[str, mtl.fewshot.Baseline],
    best: Mapping[str, Any],
    config: Config,
) -> mtl.Comparison:
    """On one data set, whose statistics the baselines use too."""
    statistics = pupil.network.statistics
    methods = [
        mtl.learner_method(pupil.learner, "cross-validated", cross_validate=True),  # as mtl.adapt does
        mtl.learner_method(pupil.by_support, "cross-validated, by support", cross_validate=True),
        mtl.learner_method(pupil.learner, "generator alone"),
        *mtl.baselines(pupil.network.backbone, table=table, statistics=statistics, **best),
    ]
    every = mtl.data.EvaluationTasks(tasks, config.test_tasks)
    return replace(mtl.evaluate(methods, every, episodes=every.episodes), unseen=tasks.unseen)


if __name__ == "__main__":
    answer(lambda config: print(main(config)), Config)
