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

from dataclasses import dataclass
from pathlib import Path

import few_shot
import torch
import tyro
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
    sources = few_shot.Sources.of(maker(config, backbone), config)
    return few_shot.run(config, backbone, sources, accelerator, draw_episodes)


def maker(config: Config, backbone: mtl.Backbone) -> few_shot.Make:
    """What makes tasks of a part, shots and queries."""
    if not config.data:
        return lambda part, shots, queries: mtl.GlyphTasks(
            part,  # type: ignore[arg-type]
            ways=config.ways,
            shots=shots,
            queries=queries,
            seed=config.seed,
        )
    preprocess = lambda items: torch.as_tensor(backbone.preprocess(items))  # noqa: E731
    inputs = few_shot.input_cache(config, backbone, preprocess)
    if are_asked(config.data, config.questions):
        return make_family_tasks(config, "images", inputs)
    return few_shot.make_class_tasks(mtl.open_images(config.data[0]), config, inputs)


def draw_episodes(learner: mtl.MetaLearner, tasks: mtl.TaskSource, out: Path) -> None:
    [(_, e)] = mtl.stack_by_shape([tasks.sample(i) for i in range(4)])
    predicted = learner.adapt(e.support).predict(e.query.inputs).cpu()
    mtl.tools.episode_strip(
        e.support.inputs.tensor,
        e.support.labels,
        e.query.inputs.tensor,
        e.query.labels,
        predicted,
        out / "episodes.png",
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
