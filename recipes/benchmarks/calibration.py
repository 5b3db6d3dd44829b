"""How far can probabilities of adapted tasks be trusted, and what does a temperature from left-out examples add?

    python recipes/benchmarks/calibration.py --backbone mtl/efficientnet-lite0 --img-size 96 --images fashion/ signs/ \
        --label-columns fashion:baseColour --hold-out-families fashion.baseColour --validation-families textures.class
    python recipes/benchmarks/calibration.py --texts clinc150.jsonl.gz hwu64.jsonl.gz --label-columns label

The ready generator, cross-validated, on tasks of new classes and of families that it was not trained on. On validation
tasks: the prior of the temperature. On test tasks: calibration error and accuracy of the surest 90 % with and without a
temperature, beside baselines that were tuned on validation tasks; and how well items of a class that is not in the task
are told apart. Every example passes through the network once (--cache-dir). Tables also go to ``--out``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from command import Checked, Count, Counts, Folder, answer
from torch import Tensor

import mtl
from mtl.data import EvaluationTasks
from mtl.fewshot import Method, choose_baselines, tune_baselines
from mtl.fewshot.calibration import LeftOut, temperatures
from mtl.fewshot.choosing import by_left_out, candidates, folds, leave_out, mix
from mtl.tools.files import write_whole
from mtl.tools.reliability import Answers
from mtl.tools.text_tables import aligned

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers.readouts import Data, Network, joined, open_network

PRIORS = (0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 1e9)


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/calibration"  # folder for the tables; run again with the same one to continue
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    backbone: str = "mtl/minilm"  # the frozen network
    img_size: Count | None = None  # height and width of images, for a timm network
    shots: Counts = (1, 2, 5, 10)  # numbers of shots to test
    queries: Count = 8  # query examples per class
    validation_tasks: Count = 8  # validation episodes of each family and number of shots
    tuning_episodes: Count = 40  # validation episodes that choose the setting of a baseline
    test_tasks: Count = 10  # test episodes of each family and number of shots
    baselines: tuple[str, ...] = ("logistic", "logistic_all", "lda_all")  # rows
    reject: float = 0.1  # share of items of known classes that may be rejected

    def contradictions(self) -> Iterator[str]:
        yield from self.data.unsaid("measure on")


def main(config: Config) -> list[mtl.Comparison]:
    divided = config.data.one_kind()
    print("\n".join(divided.report))
    options: dict[str, Any] = {} if config.img_size is None else {"img_size": config.img_size}
    network = open_network(config.backbone, config.data, divided, **options)
    parts = list(network.by_data_set().values())
    found = [compare(network, parts, config, shots) for shots in config.shots]
    tables = [
        prior_table(parts, config),
        *(comparison.probability_table(markdown=True) for comparison in found),
        stranger_table(parts, config),
    ]
    print("\n" + "\n".join(tables))
    Path(config.out).mkdir(parents=True, exist_ok=True)
    write_whole(Path(config.out) / "tables.md", "\n".join(tables).encode())
    for shots, comparison in zip(config.shots, found, strict=True):
        comparison.to_json(Path(config.out) / f"{shots}-shot.json")
    return found


def learner_on(network: Network) -> mtl.MetaLearner:
    """The ready generator, standardised by a data set."""
    learner = mtl.load_generator("mtl/universal", network.backbone)
    learner.generator.standardise(network.statistics)
    return learner


# --- calibration error, and the surest answers ---


def compare(network: Network, parts: Sequence[Network], config: Config, shots: int) -> mtl.Comparison:
    """All data sets together, each with statistics of its own."""
    table = choose_baselines(*config.baselines)
    held_out, folder = network.tasks("val", shots, config.queries), f"{config.out}/comparison"
    _, best = tune_baselines(
        network.backbone,
        held_out,
        table=table,
        episodes=config.tuning_episodes,
        statistics=network.statistics,
        folder=folder,
    )
    found = []
    for part in parts:
        if (tasks := tasks_of(part, "test", config.test_tasks, shots, config.queries)) is not None:
            baselines = mtl.baselines(part.backbone, table=table, statistics=part.statistics, **dict[str, Any](best))
            learner = learner_on(part)
            methods = [mtl.learner_method(learner, "with temperature", cross_validate=True), plain(learner), *baselines]
            comparison = mtl.evaluate(methods, tasks, episodes=tasks.episodes, setting=f"{shots}-shot", folder=folder)
            found.append(replace(comparison, unseen=tasks.tasks.unseen))
    return joined(found)


def plain(learner: mtl.MetaLearner) -> Method:
    """The same answers without a temperature."""
    whole = mtl.learner_method(learner, cross_validate=True)

    def logits(episode: mtl.Episode) -> Tensor:
        return learner.adapt(episode.support, cross_validate=True).logits(episode.query.inputs)

    return Method.of_logits("without temperature", logits, kind="ours", identity=whole.identity)


def tasks_of(network: Network, part: str, count: int, shots: int, queries: int) -> EvaluationTasks | None:
    """So many tasks of each family; None where no family has enough examples."""
    if not network.divided.parts[part]:
        return None
    try:
        return EvaluationTasks(network.tasks(part, shots, queries), count)
    except ValueError:
        return None


# --- the prior ---


def prior_table(parts: Sequence[Network], config: Config) -> str:
    """Calibration error and log-loss on validation tasks, by the strength of the prior."""
    heads = ["prior", *(f"{shots}-shot: ECE, log-loss" for shots in config.shots if shots > 1)]
    columns = [list(by_prior(parts, config, shots)) for shots in config.shots if shots > 1]
    names = [f"{prior:g}" if prior < 1e6 else "no temperature" for prior in PRIORS]
    rows = [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    return f"{aligned([heads, *rows], True)}\n\nValidation tasks; ECE in %, log-loss in nats.\n"


def by_prior(parts: Sequence[Network], config: Config, shots: int) -> Iterator[str]:
    asked = [judged for part in parts for judged in judge(part, config, shots)]
    for prior in PRIORS:
        losses, confidence, right = [], list[np.ndarray](), list[np.ndarray]()
        for left_out, logits, labels in asked:
            factor = temperatures(left_out.logits, left_out.labels, prior).view(-1, 1, 1)
            chances = (logits / factor).softmax(-1)
            losses.append(-chances.gather(-1, labels.unsqueeze(-1)).log().flatten())
            top = chances.max(-1)
            confidence += list(top.values.numpy())
            right += list((top.indices == labels).numpy())
        ece = Answers(tuple(confidence), tuple(right)).ece[0]
        yield f"{100 * ece:.1f}, {float(torch.cat(losses).mean()):.3f}"


@torch.no_grad()
def judge(network: Network, config: Config, shots: int) -> Iterator[tuple[LeftOut, Tensor, Tensor]]:
    """Of validation tasks, answers to left-out examples, and those to queries with their labels."""
    learner = learner_on(network)
    tries = partial(candidates, learner.generator)
    tasks = tasks_of(network, "val", config.validation_tasks, shots, config.queries)
    for episode in batches(tasks):
        support = episode.support
        prepared = learner.backbone.prepare(support.inputs)
        view = learner.view(support, prepared, episode.ways)
        split = folds(view.labels, episode.ways)
        assert split is not None, "more than one shot"
        found = leave_out(learner.model, view, prepared, split, tries, learner.model.initial_weights)
        choice = by_left_out(tuple(tries(learner.generator(view))), found)
        adapted = learner.adapt(support, cross_validate=True)
        mixed = found._replace(logits=mix(found.logits, choice.weights))
        yield mixed, adapted.logits(episode.query.inputs).double(), episode.query.labels


def batches(tasks: EvaluationTasks | None, size: int = 5) -> Iterator[mtl.Episode]:
    for start in range(0, tasks.episodes if tasks else 0, size):
        assert tasks is not None
        episodes = [tasks.sample(i) for i in range(start, min(start + size, tasks.episodes))]
        yield from (episode for _, episode in mtl.stack_by_shape(episodes))


# --- items of no class ---


def stranger_table(parts: Sequence[Network], config: Config) -> str:
    """How items of a class that is not in the task are told apart from those of its classes."""
    known = f"rejected of known, reject={config.reject:g}"
    heads = ["shots", "AUROC, mean over tasks", known, "rejected of strangers"]
    rows = [list(strangers(parts, config, shots)) for shots in config.shots if shots > 1]
    note = "Test tasks; the last class of each is taken out of the support set, and its queries are strangers. In %."
    return f"{aligned([heads, *rows], True)}\n\n{note}\n"


def strangers(parts: Sequence[Network], config: Config, shots: int) -> Iterator[str]:
    areas, lost, caught = list[float](), list[float](), list[float]()
    for part in parts:
        learner = learner_on(part)
        tasks = tasks_of(part, "test", config.test_tasks, shots, config.queries)
        for episode in batches(tasks):
            if episode.ways < 3:
                continue
            adapted = learner.adapt(without_last(episode), cross_validate=True)
            chances = adapted.predict_proba(episode.query.inputs).amax(-1)
            for task, labels, row in zip(adapted.calibrations, episode.query.labels, chances, strict=True):
                known, strange = row[labels < episode.ways - 1], row[labels == episode.ways - 1]
                areas.append(area(known, strange))
                threshold = task.threshold(config.reject) if (task.left_out + 1) * config.reject >= 1 else np.nan
                lost.append(float((known < threshold).float().mean()) if threshold == threshold else np.nan)
                caught.append(float((strange < threshold).float().mean()) if threshold == threshold else np.nan)
    yield str(shots)
    yield from map(in_percent, (areas, lost, caught))


def without_last(episode: mtl.Episode) -> mtl.Examples:
    """The support set without its last class."""
    labels = episode.support.labels
    order = labels.argsort(dim=1, stable=True)[:, : int((labels[0] < episode.ways - 1).sum())]
    rows = torch.arange(len(labels)).unsqueeze(1)
    inputs = episode.support.inputs.map(lambda v: v[rows, order])
    return mtl.Examples(inputs, labels.gather(1, order))


def area(known: Tensor, strange: Tensor) -> float:
    """Probability that an item of a known class is surer than a stranger; ties count half (AUROC)."""
    higher = (known.unsqueeze(1) > strange).double() + 0.5 * (known.unsqueeze(1) == strange).double()
    return float(higher.mean())


def in_percent(values: Iterable[float]) -> str:
    kept = [v for v in values if v == v]
    if len(kept) < 2:
        return "too few left-out examples"
    mean, half = mtl.tools.mean_interval(kept)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


if __name__ == "__main__":
    answer(main, Config)
