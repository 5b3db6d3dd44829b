"""Train the ready generator, ``mtl/universal``: one rule for the channels of any network, on several networks at once.

    python recipes/train_universal.py --out mtl/fewshot/assets --images fashion/ signs/ drawings/ \
        --texts clinc150.jsonl.gz hwu64.jsonl.gz --label-columns fashion:articleType fashion:baseColour clinc150:label \
        --validation-families textures.class --hold-out-families fashion.gender

All networks share the weights of one ``ChannelWise(per_channel=False)``; each has statistics of its own. Every example
passes through every network once (--cache-dir), and the training itself reads what came out. What is kept is best on
new classes and on --validation-families, kinds of question that were not trained on, which count as much. With
--keep-out a network is left out of training, and the table is of that one: what the generator is worth on a network
that it has never seen.
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
from helpers.readouts import Data, Network, open_network
from torch import Tensor, nn
from tqdm.auto import trange

import mtl
from mtl.fewshot.ready import save_ready

NAME = "universal"
LITES = tuple(f"mtl/efficientnet-lite{size}" for size in range(3))
ROWS = ("logistic", "ridge_all")


@dataclass(frozen=True)
class Config:
    out: str = "runs/universal"  # folder for universal.safetensors and universal.json
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    image_backbones: tuple[str, ...] = LITES  # networks that read images
    text_backbones: tuple[str, ...] = ("mtl/minilm", "mtl/mpnet", "mtl/smollm2")  # networks that read texts
    keep_out: tuple[str, ...] = ()  # networks to leave out of the training and to test on instead
    img_size: int = 96  # height and width of images
    hidden: int = 64  # width of the generator's layers
    steps: int = 2000  # optimiser steps; each is of one network and one number of shots
    tasks_per_step: int = 8  # tasks per step
    shots: tuple[int, ...] = (1, 1, 1, 2, 3, 5, 5, 5, 10)  # examples per class, drawn from this list
    queries: int = 6  # query examples per class
    by_support: float = 0.25  # share of steps that standardise by the support set alone, as a new network may have to
    lr: float = 2e-3  # peak learning rate of AdamW
    warmup: int = 50  # steps of linear warm-up, before a cosine decay
    validations: int = 5  # how often, evenly spaced
    validation_tasks: int = 12  # episodes of each family, network and number of shots in a validation
    test_tasks: int = 20  # episodes of each test family and number of shots; 0 for no table
    seed: int = 0  # of weights and episodes


@dataclass(frozen=True)
class Pupil:
    """A network with learners whose generator has the weights that all networks share.

    Args:
        learner: standardises by statistics of the network.
        by_support: the same, but standardises each task by its own support set.
    """

    network: Network
    learner: mtl.MetaLearner
    by_support: mtl.MetaLearner

    @staticmethod
    def of(network: Network, hidden: int, shared: nn.Module | None = None) -> Pupil:
        def learner(standard: str, shared: nn.Module | None) -> mtl.MetaLearner:
            options: dict[str, Any] = {"per_channel": False, "hidden": hidden, "standard": standard}
            generator = mtl.fewshot.make_generator("channelwise", network.backbone, **options)
            if shared is not None:
                share_parameters(shared, generator)
            return mtl.MetaLearner(network.backbone, generator)

        fixed = learner("fixed", shared)
        fixed.generator.standardise(network.statistics)
        return Pupil(network, fixed, learner("support", fixed.generator))


def share_parameters(source: nn.Module, target: nn.Module) -> None:
    """Make the parameters of ``target`` those of ``source``, not copies of them; buffers stay apart."""
    shared = dict(source.named_parameters())
    for name, own in list(target.named_parameters()):
        if shared[name].shape != own.shape:
            raise ValueError(f"{name} has the shape {tuple(own.shape)}, not {tuple(shared[name].shape)}")
        module, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(module), leaf, shared[name])


def main(config: Config) -> Path:
    torch.manual_seed(config.seed)
    networks = open_networks(config)
    pupils: dict[str, Pupil] = {}
    for name, network in networks.items():
        first = next(iter(pupils.values()), None)
        pupils[name] = Pupil.of(network, config.hidden, first and first.learner.generator)
    trained = {name: pupil for name, pupil in pupils.items() if name not in config.keep_out}
    started = time.perf_counter()
    validation = train(trained, config)
    facts = {
        "networks": list(trained),
        "families": {kind: list(v.divided.parts["train"]) for kind, v in _by_kind(config, networks).items()},
        "validation": validation,
        "settings": {k: v for k, v in asdict(config).items() if k not in ("out", "data")},
        "seconds": round(time.perf_counter() - started),
    }
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    keep(trained, out, facts)
    if config.test_tasks:
        facts["test"] = {n: p for n, pupil in pupils.items() if tested(n, config) for p in [test(n, pupil, config)]}
        keep(trained, out, facts)
    return out / f"{NAME}.safetensors"


def tested(name: str, config: Config) -> bool:
    """Whether a network gets a table: those kept out, or all where none is."""
    return not config.keep_out or name in config.keep_out


def keep(pupils: Mapping[str, Pupil], out: Path, facts: dict[str, Any]) -> None:
    save_ready(next(iter(pupils.values())).learner, out / NAME, extra=facts)


def open_networks(config: Config) -> dict[str, Network]:
    """All networks, those kept out too, with the families of their kind of data.

    Raises:
        ValueError: nothing to train on.
    """
    if unknown := set(config.keep_out) - {*config.image_backbones, *config.text_backbones}:
        raise ValueError(f"--keep-out {' '.join(sorted(unknown))}: expected some of the networks to train on")
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
    if not found:
        raise ValueError("nothing to train on: give --images or --texts")
    return found


def _by_kind(config: Config, networks: Mapping[str, Network]) -> dict[str, Network]:
    """A network of each kind of data."""
    kinds = {name: "texts" if name in config.text_backbones else "images" for name in networks}
    return {kind: networks[name] for name, kind in kinds.items()}


def train(pupils: Mapping[str, Pupil], config: Config) -> dict[str, float]:
    """Train the shared weights in place; the best ones by validation stay.

    Returns:
        Their validation accuracies, see :func:`validate`.
    """
    generator = next(iter(pupils.values())).learner.generator
    parameters = [p for name, p in generator.named_parameters() if name != "step_sizes_of.log_lr"]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))
    best: tuple[float, dict[str, float], dict[str, Tensor]] = (-math.inf, {}, {})
    bar = trange(config.steps, desc="train", unit="step")
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


def lessons(pupils: Mapping[str, Pupil], config: Config) -> Iterator[Lesson]:
    """Endless lessons: of a network, a number of shots and a way to standardise, drawn anew for each."""
    sources = {
        (name, shots): pupil.network.tasks("train", shots, config.queries, config.seed)
        for name, pupil in pupils.items()
        for shots in set(config.shots)
    }
    rng, drawn = np.random.default_rng(config.seed), dict.fromkeys(sources, 0)
    while True:
        name, shots = list(pupils)[rng.integers(len(pupils))], config.shots[rng.integers(len(config.shots))]
        pupil, at = pupils[name], drawn[name, shots]
        drawn[name, shots] += config.tasks_per_step
        episodes = [sources[name, shots].sample(i) for i in range(at, at + config.tasks_per_step)]
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


def validate(pupils: Mapping[str, Pupil], config: Config) -> dict[str, float]:
    """Accuracy on new classes of families that are trained on, and on families that are not, each a mean over these."""
    found: dict[str, float] = {}
    for name, pupil in pupils.items():
        for shots in (5, 1):
            tasks = pupil.network.tasks("val", shots, config.queries)
            every = mtl.data.EvaluationTasks(tasks, config.validation_tasks)
            result = mtl.evaluate(pupil.learner, every, episodes=every.episodes, progress=False)
            result = replace(result, unseen=tasks.unseen)
            for block, part in (result.blocks() or {"all": result}).items():
                found[f"{name}, {shots}-shot, {block}"] = float(part.rows[0].accuracy.mean())
    return found


def test(name: str, pupil: Pupil, config: Config) -> dict[str, float]:
    """Print tables against baselines that were tuned on validation tasks; differences in points, by block."""
    lines = {}
    for shots in (5, 1):
        network = pupil.network
        held_out = network.tasks("val", shots, config.queries)
        table = mtl.fewshot.choose_baselines(*ROWS)
        methods, _ = mtl.fewshot.tune_baselines(
            network.backbone, held_out, table=table, episodes=60, statistics=network.statistics
        )
        tasks = mtl.data.EvaluationTasks(network.tasks("test", shots, config.queries), per_family=config.test_tasks)
        ours = [
            mtl.learner_method(pupil.learner, "universal"),
            mtl.learner_method(pupil.by_support, "universal, by support"),
            mtl.learner_method(pupil.learner, "cross-validated", cross_validate=True),
        ]
        found = mtl.evaluate([*ours, *methods], tasks, episodes=tasks.episodes, setting=f"{name}, {shots}-shot")
        found = replace(found, unseen=tasks.tasks.unseen)
        print(f"\n{found.table(markdown=True)}")
        for block, part in (found.blocks() or {"": found}).items():
            for row in part.rows[1:]:
                lines[f"{shots}-shot, {block}, ahead of {row.method}"] = part.verdict(row.method).difference
    return lines


if __name__ == "__main__":
    print(main(tyro.cli(Config)))
