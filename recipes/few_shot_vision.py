"""Meta-train a scale-and-shift generator on a frozen backbone and compare it with what people do without one.

    python recipes/few_shot_vision.py                                   # embedded glyphs, offline
    python recipes/few_shot_vision.py --data photos/ --backbone vit_small_patch16_224.dino
    python recipes/few_shot_vision.py --data fashion/ signs/ --label-columns class colour season
    accelerate launch recipes/few_shot_vision.py --out runs/mine

Seven minutes on two idle cores for the first: at 5-way 5-shot expect about 55 % (static control 51 %, scale and shift
tuned per task 62 %). docs/results.md has the tables, and those of a longer run: 67, 58 and 61 %. Stopped at any moment,
the same command goes on. few_shot.py has what this shares with few_shot_text.py: the training and the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import few_shot
import tyro
from helpers.kept_tasks import KeptTasks
from helpers.questions import are_asked, make_family_tasks

import mtl


@dataclass(frozen=True)
class Config(few_shot.Settings):
    out: str = "runs/few_shot_vision"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # class folders, zip, csv, parquet or hub id, one or several; glyphs when not given
    backbone: str = "mtl/glyphs"  # mtl/glyphs, any timm name, or hf/<id>
    checkpoint: str | None = None  # file of weights for a timm backbone


def main(config: Config) -> list[mtl.Comparison]:
    accelerator = few_shot.accelerator_of(config)
    backbone = few_shot.backbone_of(config, accelerator, config.backbone, checkpoint=config.checkpoint)
    raw = maker(config, backbone, backbone.preprocess)
    make = raw if backbone.sites else of_readouts(config, backbone, raw)
    inside = few_shot.tuned_inside(config, accelerator, raw, checkpoint=config.checkpoint)
    draw = lambda learner, _, out: draw_episodes(learner, raw("test", config.shots[0], config.queries), out)  # noqa: E731
    sources = few_shot.Sources.of(make, config)
    return few_shot.run(config, backbone, sources, accelerator, draw, inside if config.tuned_inside else None)


def of_readouts(config: Config, backbone: mtl.Backbone, raw: few_shot.Make) -> few_shot.Make:
    """The same tasks, with what the frozen network reads in the images, each computed once."""
    if config.data:
        return maker(config, backbone, lambda items: backbone.with_prefix(backbone.preprocess(items)))
    count = {"train": config.kept_episodes, "val": config.validation_tasks, "test": config.test_episodes}
    return lambda part, shots, queries: KeptTasks(raw(part, shots, queries), backbone, count[part])


def maker(config: Config, backbone: mtl.Backbone, preprocess: Callable[[Any], Any]) -> few_shot.Make:
    """What makes tasks of a part, shots and queries."""
    if not config.data:
        return lambda part, shots, queries: mtl.GlyphTasks(
            part,  # type: ignore[arg-type]
            ways=config.ways,
            shots=shots,
            queries=queries,
            seed=config.seed,
        )
    inputs = few_shot.input_cache(config, backbone, preprocess)
    if are_asked(config.data, config.questions):
        return make_family_tasks(config, "images", inputs)
    return few_shot.make_class_tasks(mtl.open_images(config.data[0]), config, inputs)


def draw_episodes(learner: mtl.MetaLearner, tasks: mtl.TaskSource, out: Path) -> None:
    """Four episodes with what was predicted."""
    [(_, e), *_] = mtl.stack_by_shape([tasks.sample(i) for i in range(4)])
    predicted = learner.adapt(e.support).predict(e.query.inputs).cpu()
    support, query = e.support.inputs.tensor, e.query.inputs.tensor
    mtl.tools.episode_strip(support, e.support.labels, query, e.query.labels, predicted, out / "episodes.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
