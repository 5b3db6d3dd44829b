"""Fine-tune a pretrained network on 10 to 50 labels per class without sweeping a learning rate.

    python recipes/finetune.py --backbone mtl/efficientnet-lite0 --img-size 96 --images fashion/ signs/ \
        --label-columns class fashion:baseColour --hold-out-families fashion.baseColour
    mtl adapt --generator runs/finetune/refined/final --data LABELLED   # afterwards, on a task of your own

Meta-trains on earlier tasks, first a channel-wise rule in closed form, then through a loop of --inner-steps steps from
there: where it starts, its step sizes level by level, momentum and decay, all of them read off the labelled examples
(:class:`mtl.fewshot.Refined`). Then compares on new classes and on families never trained on, by number of labels: with
the rule trained as long without a loop; with closed-form baselines; and with what people do today, a sweep: scale,
shift and head tuned at each of nine rates on four fifths of the labels, and once more at the rate that was best on the
rest. With --inside-episodes 1 also inside the network: scale and shift, or all weights, of its last block, and LoRA in
all layers of a network of transformers. Seconds are of one new task, the sweep's with its nine tries.

Every example passes through the network once (--cache-dir). A run continues where it stopped; tables and a picture of
accuracy against labels and seconds go to --out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from helpers.readouts import Data, Network, open_network
from helpers.shots_figure import shots_figure
from helpers.sweeps import NINE, last_block, swept

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, CountList, CountOrZero, Counts, Folder, Positive, Positives, Seeds
from mtl.fewshot import PEFT_BASELINES, Method, Setup, choose_baselines, tune_baselines
from mtl.fewshot.baselines.fine_tuning import scale_and_shift
from mtl.tools.comparison import MethodResult
from mtl.tools.files import write_whole
from mtl.tools.progress import ProgressBar

READY = "mtl/universal"


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/finetune"  # output folder; run again with the same one to continue
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    backbone: str = "mtl/efficientnet-lite0"  # the frozen network
    img_size: Count | None = None  # height and width of images, for a timm network
    shots: Counts = (1, 2, 5, 10, 20, 50)  # numbers of labels per class to test
    training_shots: CountList = (1, 5, 20, 50, 20, 10)  # trained on in turn
    validation_shots: Counts = (5, 20)  # of the tasks that choose the best weights
    queries: Count = 10  # query examples per class
    inner_steps: Count = 50  # steps of the loop
    warm_steps: CountOrZero = 400  # outer steps of the rule, in closed form
    steps: Count = 150  # outer steps through the loop; the rule alone is trained as many further
    tasks_per_step: Count = 4  # tasks per outer step
    outer_lr: Positive = 2e-3  # peak learning rate of the rule; half of it where it is trained further
    loop_lr: Positive = 4e-3  # peak learning rate of what emits the loop's rates; the rule stays as it is
    validation_tasks: Count = 48  # episodes that choose the best weights
    tuning_episodes: Count = 40  # validation episodes that choose the setting of a baseline
    test_episodes: Count = 30  # of each family and number of shots
    sweep_episodes: CountOrZero = 4  # of each family, that the sweep is run on too; it is slow. 0: no sweep
    inside_episodes: CountOrZero = 0  # of each family, that is tuned inside the network too; minutes a task. 0: none
    sweep: Positives = NINE  # Adam's step sizes to choose from
    baselines: tuple[str, ...] = ("ridge_all", "logistic_all", "logistic")  # rows of the table
    cross_validate: bool = False  # a row more: the loop, stopped where left-out labels say; ten times as slow
    seeds: Seeds = (0,)  # of weights and training episodes; accuracies of what is trained are means over them

    @property
    def load_options(self) -> dict[str, Any]:
        return {} if self.img_size is None else {"img_size": self.img_size}

    def contradictions(self) -> Iterator[str]:
        yield from self.data.unsaid("train on")


def main(config: Config) -> list[mtl.Comparison]:
    divided = config.data.one_kind()
    print("\n".join(divided.report))
    network = open_network(config.backbone, config.data, divided, **config.load_options)
    trained = {folder_of(config, seed): train(network, config, seed) for seed in config.seeds}
    found, text = list[mtl.Comparison](), ""
    for shots in config.shots:
        comparisons = compare(network, trained, config, shots)
        found += comparisons
        text += "".join(f"\n{c.table(markdown=True)}\n" for c in comparisons)
        write_whole(Path(config.out) / "finetune.md", text.encode())
    print(text)
    for comparison in found:
        comparison.to_json(Path(config.out) / f"{comparison.setting.removeprefix(f'{config.backbone}, ')}.json")
    shots_figure(found, Path(config.out) / "finetune.png")
    return found


# --- meta-training ---------------------------------------------------------------------------------------------------


Trained = tuple[mtl.MetaLearner, mtl.MetaLearner]
"""The rule with its loop, and the rule alone after as many outer steps."""


def folder_of(config: Config, seed: int) -> Path:
    """Of one training; the first has no folder of its own, so that its generator is found in the same place."""
    return Path(config.out) / ("" if seed == config.seeds[0] else f"seed-{seed}")


def train(network: Network, config: Config, seed: int) -> Trained:
    torch.manual_seed(seed)
    run = partial(_train, network=network, config=config, seed=seed)
    rule = learner(network, "channelwise", 0)
    if config.warm_steps:
        rule = run(rule, name="rule", steps=config.warm_steps, lr=config.outer_lr)
    closed, refined = learner(network, "channelwise", 0), learner(network, "refined", config.inner_steps)
    closed.generator.load_state_dict(rule.generator.state_dict())
    assert isinstance(refined.generator, mtl.fewshot.Refined)
    assert isinstance(rule.generator, mtl.ChannelWise)
    refined.generator.start_from(rule.generator, keep=True)
    looped = run(refined, name="refined", steps=config.steps, lr=config.loop_lr)
    return looped, run(closed, name="closed", steps=config.steps, lr=config.outer_lr / 2)


def learner(network: Network, kind: str, steps: int) -> mtl.MetaLearner:
    generator = mtl.fewshot.make_generator(kind, network.backbone)
    generator.standardise(network.statistics)
    return mtl.MetaLearner(network.backbone, generator, inner_steps=steps)


def _train(
    learner: mtl.MetaLearner, network: Network, config: Config, seed: int, name: str, steps: int, lr: float
) -> mtl.MetaLearner:
    """The best of a training by validation tasks."""
    block = config.tasks_per_step
    tasks = [network.tasks("train", s, config.queries, seed) for s in config.training_shots]
    held_out = [network.tasks("val", s, config.queries) for s in config.validation_shots]
    settings = mtl.TrainingConfig(
        steps=steps,
        tasks_per_step=block,
        tasks_per_chunk=block,
        outer_lr=lr,
        step_size_lr=3e-2,
        warmup=min(20, steps // 4),
        validate_every=max(1, steps // 4),
        validation_tasks=config.validation_tasks,
        save_every=25,
        self_check=False,
    )
    folder = folder_of(config, seed) / name
    best = mtl.train(learner, mtl.Alternating(tasks, block), mtl.Alternating(held_out, block), settings, folder)
    mtl.save_pretrained(best, folder / "final")
    return best


# --- comparison ------------------------------------------------------------------------------------------------------


def compare(network: Network, trained: dict[Path, Trained], config: Config, shots: int) -> list[mtl.Comparison]:
    """All methods on many tasks; the loop and the sweep on the first of these."""
    tests = network.tasks("test", shots, config.queries)
    setting = f"{config.backbone}, {config.data.ways}-way {shots}-shot"

    on = partial(evaluated, tests, Path(config.out))

    def trained_on(count: int, setting: str, first: int | None = None) -> mtl.Comparison:
        """The first methods of every training, or all of them, and their means."""
        found = [
            evaluated(tests, place, of_training(*t, config)[:first], count, setting) for place, t in trained.items()
        ]
        return replace(found[0], rows=tuple(map(mean, zip(*(c.rows for c in found), strict=True))))

    def beside(ours: mtl.Comparison, others: mtl.Comparison) -> mtl.Comparison:
        return replace(ours, rows=(*ours.rows, *others.rows))

    baselines, _ = tune_baselines(
        network.backbone,
        network.tasks("val", shots, config.queries),
        table=choose_baselines(*config.baselines),
        episodes=config.tuning_episodes,
        statistics=network.statistics,
        folder=f"{config.out}/comparison",
    )
    others = [mtl.learner_method(ready(network), "ready generator"), *baselines]
    found = [beside(trained_on(config.test_episodes, setting), on(others, config.test_episodes, setting))]
    if n := config.sweep_episodes:
        sweep = swept(Setup(network.backbone, config.inner_steps, network.statistics), scale_and_shift, config.sweep)
        said = f"{setting}, with a sweep"
        found.append(beside(trained_on(n, said, first=1), on([sweep], n, said)))
    if n := config.inside_episodes:
        said = f"{setting}, with a sweep inside the network"
        found.append(beside(trained_on(n, said, first=1), inside(network, config, shots)))
    return found


def evaluated(
    tests: mtl.data.FamilyTasks, place: Path, methods: Sequence[Method], count: int, setting: str, at_once: int = 4
) -> mtl.Comparison:
    """Methods on so many tasks of each family; what is done is kept in a folder in ``place``."""
    tasks = mtl.data.EvaluationTasks(tests, count)
    folder = place / "comparison"
    found = mtl.evaluate(
        methods, tasks, episodes=tasks.episodes, setting=setting, folder=folder, tasks_per_chunk=at_once
    )
    return replace(found, unseen=tests.unseen)


def of_training(refined: mtl.MetaLearner, closed: mtl.MetaLearner, config: Config) -> list[Method]:
    return [
        mtl.learner_method(refined, "refined"),
        *([mtl.learner_method(refined, "cross-validated", cross_validate=True)] if config.cross_validate else []),
        mtl.learner_method(refined, "refined", steps=0),
        mtl.learner_method(closed, "closed form, trained as long"),
    ]


def mean(rows: Sequence[MethodResult]) -> MethodResult:
    """One method after several trainings, on the same tasks."""
    if len(rows) == 1:
        return rows[0]
    accuracy, seconds = (np.mean(v, 0) for v in zip(*((r.accuracy, r.seconds_per_task) for r in rows), strict=True))
    return replace(rows[0], accuracy=accuracy, seconds_per_task=float(seconds), answers=None)


def ready(network: Network) -> mtl.MetaLearner:
    """The generator that comes with the package, which nothing was trained of here."""
    learner = mtl.load_generator(READY, network.backbone)
    learner.generator.standardise(network.statistics)
    return learner


def inside(network: Network, config: Config, shots: int) -> mtl.Comparison:
    """Tuning inside the network, at rates swept task by task, on the same tasks.

    Of the last block, for which what lies below is computed once; and of all layers by LoRA, where peft knows them.
    """
    load = partial(mtl.load_backbone, config.backbone, **config.load_options)

    def on(backbone: mtl.Backbone, rows: mtl.data.InputCache, methods: Sequence[Method]) -> mtl.Comparison:
        tests = replace(network, rows=rows).tasks("test", shots, config.queries)
        said = f"{shots}-shot, inside, {backbone.name}"
        return evaluated(tests, Path(config.out), methods, config.inside_episodes, said, at_once=1)  # minutes each

    block, whole = load(last_k=1), load(sites="none")
    rows = mtl.data.InputCache(block.precompute, folder=config.data.cache_dir, version=block.cache_key())
    of_block = [swept(Setup(block, config.inner_steps), make, config.sweep) for make in (scale_and_shift, last_block)]
    of_block[0] = replace(of_block[0], name=f"{of_block[0].name}, last block")
    found = on(block, rows, of_block)
    try:
        lora = swept(Setup(whole, config.inner_steps), PEFT_BASELINES["lora"].make, config.sweep)
    except (ImportError, ValueError) as without:
        ProgressBar.write(f"no LoRA: {without}")
        return found
    return replace(found, rows=(*found.rows, *on(whole, mtl.data.InputCache(whole.preprocess), [lora]).rows))


if __name__ == "__main__":
    answer(main, Config)
