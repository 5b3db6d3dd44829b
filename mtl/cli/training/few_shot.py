"""What the few-shot recipes share: settings, two-stage meta-training, the comparison, and what is written to disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

import mtl
from mtl.cli.answers import keeping
from mtl.cli.report import REPORT, answers_of, shown_methods, write_report
from mtl.cli.training import run_folder
from mtl.cli.training.questions import episodes_of, with_unseen
from mtl.cli.training.reading import told
from mtl.cli.training.settings import Settings, check_data
from mtl.cli.training.trackers import begin_tracking, check_tracker, track_results
from mtl.episode import Readable
from mtl.fewshot.training import read_metrics
from mtl.fewshot.training.processes import from_main
from mtl.tools.comparison import MethodResult
from mtl.tools.files import write_whole
from mtl.tools.lock import folder_lock

Make = Callable[[str, int, int], mtl.TaskSource]
"""Part, shots and queries per class, to tasks."""
MoreRows = Callable[[int], tuple[MethodResult, ...]]
"""Number of shots to rows of methods that have to be evaluated apart, on the same test episodes."""
Draw = Callable[[mtl.MetaLearner, Readable, Path], None]
"""Learner, test tasks and folder, to pictures of some episodes."""
STATISTICS_EPISODES = 100


def input_cache(config: Settings, backbone: mtl.Backbone, preprocess: Callable[[Any], Any]) -> mtl.data.InputCache:
    """Preprocesses every example once; with ``--cache-dir`` once for all runs."""
    version = None if config.cache_dir is None else backbone.cache_key()
    return mtl.data.InputCache(preprocess, folder=config.cache_dir, version=version)


def make_class_tasks(
    collection: mtl.data.AbstractCollection, config: Settings, preprocess: Callable[[Any], Any] | mtl.data.InputCache
) -> Make:
    """Tasks from data of your own, by the split that ``split.json`` beside the results holds."""
    told(collection.notes)
    path, names = Path(config.out) / "split.json", collection.class_names
    split = mtl.data.load_or_make_split(path, names, given=collection.parts, seed=config.seed, ways=config.ways)
    ways, seed = config.ways, config.seed
    return lambda part, shots, queries: mtl.ClassTasks(
        collection, split.parts[part], preprocess=preprocess, ways=ways, shots=shots, queries=queries, seed=seed
    )


@dataclass(frozen=True)
class Sources:
    """Training and validation tasks of all numbers of shots in turn; validation and test tasks of each number."""

    train: mtl.TaskSource
    val: mtl.TaskSource
    by_shots: Mapping[int, tuple[mtl.TaskSource, mtl.TaskSource]]

    @staticmethod
    def of(make: Make, config: Settings) -> Sources:
        # Queries that pass through a modulated network cost time; those of a readout are there already.
        fewer = config.queries if config.sites == "none" else max(1, config.queries // 2)
        block = max(1, config.tasks_per_step // 2)
        train = mtl.Alternating([make("train", s, fewer) for s in config.shots], block)
        val = mtl.Alternating([make("val", s, config.queries) for s in config.shots], 4)
        by_shots = {s: (make("val", s, config.queries), make("test", s, config.queries)) for s in config.shots}
        return Sources(train, val, by_shots)


def accelerator_of(config: Settings) -> Accelerator:
    check_tracker(config.tracker)
    trackers = None if config.tracker == "none" else config.tracker
    return Accelerator(mixed_precision=config.mixed_precision, log_with=trackers, project_dir=config.out)


def backbone_of(config: Settings, accelerator: Accelerator, name: str, **options: Any) -> mtl.Backbone:
    """The frozen network, where and how the settings want it."""
    check_data(config.data)  # at once: a network may take minutes to come
    memory = config.memory
    options |= {"sites": config.sites, "last_k": config.last_k, "quantization": memory.quantization}
    options |= {} if config.levels == "last" else {"levels": config.levels}
    options |= {} if config.img_size is None else {"img_size": config.img_size}
    options |= {} if memory.dtype is None else {"dtype": memory.dtype}
    backbone = mtl.load_backbone(name, device_map=memory.device_map, **options)
    backbone.configure(checkpoint_blocks=memory.checkpoint_blocks, examples_per_chunk=memory.examples_per_chunk)
    return mtl.shard(backbone, accelerator) if memory.shard else backbone.to(accelerator.device)


def run(
    config: Settings,
    backbone: mtl.Backbone,
    sources: Sources,
    accelerator: Accelerator,
    draw: Draw,
    inside: MoreRows | None = None,
) -> list[mtl.Comparison]:
    """Train the generator and its static control, compare all methods on the test tasks, write tables and pictures.

    The same command goes on where it stopped, and returns at once when it is finished.

    Raises:
        ValueError: the folder belongs to a run with other settings or data; nothing is written.
        FolderInUse: another process works there.
    """
    # A baseline that this network cannot have is refused before the training, not after it.
    mtl.baselines(backbone, table=mtl.fewshot.choose_baselines(*config.baselines))
    with ExitStack() as held:
        found, command = None, ""
        if accelerator.is_main_process:
            training = run_folder.identity_of_training(config, backbone, sources.train, sources.val)
            command = run_folder.identity_of_command(config, training, sources.by_shots)
            found = run_folder.finished(config, command)
            if found is None:
                held.enter_context(folder_lock(config.out))
                run_folder.take(config, training)
        if from_main(found is not None):
            for comparison in found or []:
                print(f"\n{comparison.table()}\n{comparison.probability_table()}")
            if accelerator.is_main_process and not (Path(config.out) / REPORT).is_file():  # of an earlier version
                write_report(config.out)
            return found or []
        begin_tracking(accelerator, config)
        with keeping(f"what is done is in {config.out}: the same command continues from there"):
            found = train_and_compare(config, backbone, sources, accelerator, draw, inside)
        if accelerator.is_main_process:
            run_folder.finish(config, command)
            write_report(config.out)
        return found


def train_and_compare(
    config: Settings,
    backbone: mtl.Backbone,
    sources: Sources,
    accelerator: Accelerator,
    draw: Draw,
    inside: MoreRows | None,
) -> list[mtl.Comparison]:
    statistics = statistics_of(backbone, sources.train)
    generator = meta_train(config.generator, config, backbone, sources, accelerator, statistics)
    static = meta_train("static", config, backbone, sources, accelerator, statistics)
    if not accelerator.is_main_process:
        if not config.memory.shard:
            return []
        # Processes that share a network pass through it together to the end; what this one writes nobody needs.
        config = replace(config, out=tempfile.mkdtemp())
    found = compare(config, generator, static, sources, statistics, inside)
    mtl.tools.accuracy_figure(found, Path(config.out) / "accuracy.png")
    draw_methods(found, Path(config.out))
    test = sources.by_shots[config.shots[0]][1]
    if isinstance(test, Readable):
        draw(generator, test, Path(config.out))
    track_results(accelerator, found)
    accelerator.end_training()
    return found


def compare(
    config: Settings,
    generator: mtl.MetaLearner,
    static: mtl.MetaLearner,
    sources: Sources,
    statistics: mtl.fewshot.FeatureStatistics | None,
    inside: MoreRows | None,
) -> list[mtl.Comparison]:
    """The generator, its controls and the baselines."""
    without_loop = [mtl.learner_method(generator, steps=0)] if config.inner_steps else []
    ours = [
        mtl.learner_method(generator),
        *([mtl.learner_method(generator, "cross-validated", cross_validate=True)] if config.cross_validate else []),
        *without_loop,
        mtl.fewshot.static_control(static),
        *mtl.fewshot.controls(generator),
    ]
    return compare_methods(config, generator.backbone, ours, sources, statistics, inside)


def compare_methods(
    config: Settings,
    backbone: mtl.Backbone,
    ours: Sequence[mtl.fewshot.Method],
    sources: Sources,
    statistics: mtl.fewshot.FeatureStatistics | None,
    inside: MoreRows | None = None,
) -> list[mtl.Comparison]:
    """One table per number of shots; baselines have the settings that are best on validation tasks.

    Args:
        ours: methods without settings to tune; the first is what others are compared with.
    """
    out, table = Path(config.out), mtl.fewshot.choose_baselines(*config.baselines)
    comparisons, chosen = [], {}
    for shots, (held_out, test) in sources.by_shots.items():
        methods, chosen[shots] = mtl.fewshot.tune_baselines(
            backbone,
            held_out,
            table=table,
            episodes=config.tuning_episodes,
            statistics=statistics,
            folder=config.kept,
        )
        found = mtl.evaluate(
            [*ours, *methods],
            test,
            episodes=episodes_of(test, config.test_episodes),
            setting=f"{config.ways}-way {shots}-shot",
            tasks_per_chunk=8,
            folder=config.kept,
        )
        if inside is not None:
            found = replace(found, rows=(*found.rows, *inside(shots)))
        found = with_unseen(found, test)
        found.to_csv(out / f"{shots}-shot.csv")
        found.to_json(run_folder.table_of(config, shots))
        print(f"\n{found.table()}\n{found.probability_table()}")
        comparisons.append(found)
    write_whole(out / "baselines.json", json.dumps(chosen, indent=2).encode())
    return comparisons


def statistics_of(backbone: mtl.Backbone, train: mtl.TaskSource) -> mtl.fewshot.FeatureStatistics | None:
    """Mean and deviation of the features of training tasks, where levels of unlike scale stand side by side."""
    several = len(backbone.levels) > 1
    return mtl.fewshot.FeatureStatistics.of_tasks(backbone, train, STATISTICS_EPISODES) if several else None


def tuned_inside(
    config: Settings, accelerator: Accelerator, name: str, make: Make, **options: Any
) -> Callable[[int], tuple[MethodResult, ...]]:
    """Scale and shift of every normalisation inside the network, tuned on each task: the strongest plain method.

    Args:
        name: of the network.
        make: tasks with raw inputs.
        options: how to load the network.
    """
    inner = replace(config, sites="norm", levels="last")
    backbone = backbone_of(inner, accelerator, name, **options)
    table = mtl.fewshot.choose_baselines("modulation")

    def rows(shots: int) -> tuple[MethodResult, ...]:
        held_out, test = (make(part, shots, config.queries) for part in ("val", "test"))
        [method], _ = mtl.fewshot.tune_baselines(
            backbone, held_out, table=table, episodes=config.tuning_episodes, folder=config.kept
        )
        method = replace(method, name=f"{method.name}, inside the network")
        episodes = episodes_of(test, config.test_episodes)
        return mtl.evaluate([method], test, episodes=episodes, setting=f"{shots}-shot, inside", folder=config.kept).rows

    return rows


def meta_train(
    kind: str,
    config: Settings,
    backbone: mtl.Backbone,
    sources: Sources,
    accelerator: Accelerator,
    statistics: mtl.fewshot.FeatureStatistics | None,
) -> mtl.MetaLearner:
    """First without the inner loop, then through it: most of what the generator learns does not need the loop."""
    set_seed(config.seed)
    options: dict[str, Any] = {"gate": config.gate} if kind == "dense" else {}
    if kind != "refined":  # which measures steps by its own
        options["step_size"] = config.step_size
    generator = mtl.fewshot.make_generator(kind, backbone, **options)
    if statistics is not None:
        generator.standardise(statistics)
    # A static start inside the network is so few numbers that it takes, and needs, a larger rate.
    lr = config.outer_lr * (3 if kind == "static" and not generator.reads_out else 1)
    stages = [mtl.fewshot.Stage(0, config.warm_steps, config.tasks_per_step, lr, max(20, config.warm_steps // 4))]
    # A loop over levels has no static control of its own: the static generator is compared as it is.
    inner_steps = 0 if config.generator == "refined" and kind == "static" else config.inner_steps
    if inner_steps:
        fewer, every = max(1, config.tasks_per_step // 2), max(20, config.steps // 4)
        # Step sizes have a learning rate of their own; what else emits a loop is new, and may move as fast as the rule.
        lr = lr / 4 if config.learn == "all" else lr
        stages.append(mtl.fewshot.Stage(inner_steps, config.steps, fewer, lr, every, config.learn))
    settings = mtl.TrainingConfig(
        tasks_per_chunk=config.tasks_per_chunk, step_size_lr=3e-2, validation_tasks=config.validation_tasks
    )
    folder = Path(config.out) / kind
    learner = learner_of(config, backbone, generator, inner_steps)
    best = mtl.fewshot.train_stages(learner, stages, sources.train, sources.val, settings, folder, accelerator)
    if accelerator.is_main_process:
        for stage in stages:
            if stage.steps:
                draw_curves(folder / stage.folder)
    return best


def learner_of(
    config: Settings, backbone: mtl.Backbone, generator: mtl.fewshot.AbstractGenerator, inner_steps: int
) -> mtl.MetaLearner:
    return mtl.MetaLearner(
        backbone,
        generator,
        mtl.fewshot.HEADS[config.head](),
        inner_steps=inner_steps,
        optimizer=generator.optimizer() if config.generator == "refined" else config.inner.build(),
        estimator=config.estimator.build(),
        lite_examples=config.memory.lite_examples,
    )


def draw_methods(comparisons: list[mtl.Comparison], out: Path) -> None:
    """The learner over the best baseline, beside its static control and further baselines: by family, by confidence."""
    for found in comparisons:
        shots, shown = found.setting.rpartition(" ")[2], shown_methods(found)
        if len(set(found.families)) > 1:
            mtl.tools.family_figure(found, out / f"families, {shots}.png", shown)
        if answers := answers_of(found, shown):
            mtl.tools.reliability_figure(answers, out / f"reliability, {shots}.png", found.setting)


def draw_curves(folder: Path) -> None:
    mtl.tools.curves_figure(read_metrics(folder), folder / "curves.png")
