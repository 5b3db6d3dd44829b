"""Few-shot runs on images: tasks from the embedded glyphs or from pictures of your own, and a picture of some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mtl
from mtl.cli.training import few_shot
from mtl.cli.training.kept_tasks import KeptTasks
from mtl.cli.training.questions import are_asked, make_family_tasks
from mtl.cli.training.reading import smallest_class
from mtl.cli.training.settings import Settings


def image_tasks(
    config: Settings, backbone: mtl.Backbone, *, image_column: str | None, image_folder: str | None
) -> few_shot.Make:
    """What makes tasks of a part, shots and queries. With no site inside, a picture passes the frozen network once."""
    readouts = config.sites == "none"
    if not config.data:
        count = {"train": config.kept_episodes, "val": config.validation_tasks, "test": config.test_episodes}

        def glyphs(part: str, shots: int, queries: int) -> mtl.TaskSource:
            sizes = {"ways": config.ways, "shots": shots, "queries": queries}
            tasks = mtl.GlyphTasks(part, **sizes, seed=config.seed)  # type: ignore[arg-type]
            return KeptTasks(tasks, backbone, count[part]) if readouts else tasks

        return glyphs
    inputs = few_shot.input_cache(config, backbone, backbone.precompute if readouts else backbone.preprocess)
    columns: dict[str, Any] = {"image_column": image_column, "image_folder": image_folder}
    if are_asked(config.data, config.questions):
        return make_family_tasks(config, "images", inputs, **columns)
    images = mtl.open_images(config.data[0], min_per_class=smallest_class(config), **vars(config.reading), **columns)
    return few_shot.make_class_tasks(images, config, inputs)


def draw_episodes(learner: mtl.MetaLearner, tasks: mtl.TaskSource, out: Path) -> None:
    """Four episodes with what was predicted."""
    [(_, e), *_] = mtl.stack_by_shape([pictures(learner.backbone, tasks, i) for i in range(4)])
    predicted = learner.adapt(e.support).predict(e.query.inputs).cpu()
    support, query = e.support.inputs.tensor, e.query.inputs.tensor
    mtl.tools.episode_strip(support, e.support.labels, query, e.query.labels, predicted, out / "episodes.png")


def pictures(backbone: mtl.Backbone, tasks: mtl.TaskSource, index: int) -> mtl.Episode:
    """An episode with its pictures, where the tasks have what the network reads in them."""
    if isinstance(tasks, KeptTasks):
        return tasks.source.sample(index)
    episode = tasks.sample(index)
    if not isinstance(tasks, mtl.ClassTasks | mtl.data.FamilyTasks | mtl.data.EvaluationTasks):
        return episode
    _, support, query = tasks.read(index)
    show = lambda items, side: mtl.Examples(backbone.preprocess(items)[None], side.labels)  # noqa: E731
    return replace(episode, support=show(support, episode.support), query=show(query, episode.query))
