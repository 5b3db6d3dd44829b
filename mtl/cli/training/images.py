"""Few-shot runs on images: tasks from the embedded glyphs or from pictures of your own, and a picture of some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mtl
from mtl.cli.training import few_shot
from mtl.cli.training.episodes import shown_episodes
from mtl.cli.training.kept_tasks import KeptTasks
from mtl.cli.training.questions import are_asked, make_family_tasks
from mtl.cli.training.reading import smallest_class
from mtl.cli.training.settings import Settings
from mtl.episode import Readable


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


def draw_episodes(learner: mtl.MetaLearner, tasks: Readable, out: Path) -> None:
    """Some episodes with what was predicted, ``episodes.png``."""
    mtl.tools.episode_figure(shown_episodes(learner, tasks), out / "episodes.png")
