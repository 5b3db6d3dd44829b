"""What an outer step costs, and what it takes to tune a baseline on many tasks together and one by one.

    python recipes/benchmarks/training_speed.py
    python recipes/benchmarks/training_speed.py --networks glyphs   # the default run of few_shot_vision.py alone

Seconds of processor time on a CPU, so that a busy machine matters less; the fastest repeat counts. Ten minutes by
default on one thread.

    glyphs      the default run: a readout of all levels, 16 tasks, no inner step; and drawing and reading new ones
    vit         ViT-S at 224 px with random weights, five inner steps through scale and shift of the last four blocks
    minilm      a sentence encoder with all of its norms modulated
    smollm2     a decoder of 135 M weights, its last four blocks

A network whose package is missing is left out. Baselines are tuned on half as many tasks as an outer step has: on the
readout of the glyphs, and inside the networks that --tuned names, which takes longest of all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from command import Checked, Count, Device, Folder, TwoOrMore, answer
from measuring import device_of, timed

import mtl
from mtl.cli.training.kept_tasks import KeptTasks
from mtl.tools.files import write_whole

Network = Literal["glyphs", "vit", "minilm", "smollm2"]
WORDS = ("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "runs", "from", "large", "bears", "in", "woods")


@dataclass(frozen=True)
class Config(Checked):
    networks: tuple[Network, ...] = ("glyphs", "vit", "minilm", "smollm2")  # outer steps through these
    tuned: tuple[Network, ...] = ("glyphs", "minilm")  # those of them that baselines are tuned inside of
    tasks: TwoOrMore = 16  # tasks per outer step of the glyphs, half of five shots and half of one; baselines: half
    shots: Count = 2  # examples per class and queries per class of the other networks
    image_size: Count = 224  # side of the ViT's images, in pixels
    inner_steps: Count = 5  # inner steps of the other networks
    baseline_steps: Count = 50  # gradient steps of the baselines
    repeats: Count = 3  # timed runs; the fastest counts
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    out: Folder = "runs/training_speed"  # folder of the result, training_speed.json


def main(config: Config) -> dict[str, float]:
    torch.set_num_threads(config.threads)
    found: dict[str, float] = {}
    for name in config.networks:
        try:
            found |= dict(_glyphs(config) if name == "glyphs" else _through(name, config))
        except (ImportError, OSError) as error:
            print(f"{name}: left out, {error}")
    write_whole(Path(config.out) / "training_speed.json", json.dumps(found, indent=2).encode())
    return found


def _glyphs(config: Config) -> Iterator[tuple[str, float]]:
    """The default run of recipes/few_shot_vision.py, and its baselines."""
    read = mtl.load_backbone("mtl/glyphs", sites="none", levels="all").to(device_of(config.device))
    half = config.tasks // 2

    def kept(shots: int) -> KeptTasks:
        return KeptTasks(mtl.GlyphTasks("train", shots=shots), read, half)

    def draw() -> list[mtl.Episode]:
        return [_stack([source.sample(i) for i in range(half)]) for source in (kept(5), kept(1))]

    yield "glyphs: seconds to draw and read the tasks of a step", _seconds(config, draw)
    batch = draw()
    statistics = mtl.fewshot.FeatureStatistics.of_tasks(read, kept(5), half)
    for kind in ("channelwise", "static"):
        generator = mtl.fewshot.make_generator(kind, read)
        generator.standardise(statistics)
        learner = mtl.MetaLearner(read, generator, inner_steps=0)
        yield f"glyphs, {kind}: seconds per outer step", _seconds(config, partial(_step, learner, batch))
    yield from _baselines(config, read, batch[0], ("head", "modulation", "two_stage"), "on the readout", statistics)
    if "glyphs" not in config.tuned:
        return
    inside = mtl.load_backbone("mtl/glyphs").to(device_of(config.device))
    raw = _stack([mtl.GlyphTasks("train").sample(i) for i in range(half)])
    yield from _baselines(config, inside, raw, ("modulation",), "inside the network")


def _through(name: Network, config: Config) -> Iterator[tuple[str, float]]:
    """An outer step through inner steps inside a network."""
    if name == "vit":
        options: dict[str, Any] = {"pretrained": False, "img_size": config.image_size, "last_k": 4}
        backbone = mtl.load_backbone("vit_small_patch16_224", **options)
    else:
        backbone = mtl.load_backbone(f"mtl/{name}", last_k=4 if name == "smollm2" else None)
    backbone.to(device_of(config.device))
    learner = mtl.MetaLearner(backbone, inner_steps=config.inner_steps)
    yield f"{name}: seconds per outer step", _seconds(config, partial(_step, learner, [_episode(backbone, config, 1)]))
    if name in config.tuned:
        keys = ("modulation",) if name == "vit" else ("modulation", "lora", "ia3")
        yield from _baselines(config, backbone, _episode(backbone, config, config.tasks // 2), keys, f"inside {name}")


def _episode(backbone: mtl.Backbone, config: Config, tasks: int) -> mtl.Episode:
    """Of random images, or of words."""

    def examples(seed: int) -> mtl.Examples:
        n, example = tasks * 5 * config.shots, backbone.example_inputs(1)
        if example.named:
            inputs = backbone.preprocess([" ".join(WORDS[(i + seed) % 5 :]) for i in range(n)])
        else:
            inputs = torch.randn(n, *example.shape[1:], generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(5).repeat_interleave(config.shots).expand(tasks, -1)
        return mtl.Examples(mtl.Inputs.of(inputs).unflatten(tasks), labels)

    return mtl.Episode(examples(0), examples(1), 5)


def _step(learner: mtl.MetaLearner, batch: Sequence[mtl.Episode]) -> None:
    learner.generator.zero_grad()
    for episode in batch:
        learner.meta_step(episode)


def _baselines(
    config: Config,
    backbone: mtl.Backbone,
    episode: mtl.Episode,
    keys: Sequence[str],
    where: str,
    statistics: mtl.fewshot.FeatureStatistics | None = None,
) -> Iterator[tuple[str, float]]:
    table = mtl.fewshot.choose_baselines(*keys)
    for method in mtl.baselines(backbone, table=table, steps=config.baseline_steps, statistics=statistics):

        def one_by_one(method: mtl.fewshot.Method = method) -> None:
            for t in range(episode.tasks):
                method.answers(episode[t : t + 1])

        name = f"{method.name}, {where}"
        alone, together = (
            s / episode.tasks for s in _alternating(config, one_by_one, partial(method.answers, episode))
        )
        yield f"{name}: seconds per task, one by one", alone
        yield f"{name}: seconds per task, {episode.tasks} together", together
        print(f"{name}: {alone / together:.2f} times as fast together")


def _stack(episodes: Sequence[mtl.Episode]) -> mtl.Episode:
    return mtl.Episode.stack(episodes)


def _seconds(config: Config, run: Callable[[], object]) -> float:
    """Of the fastest repeat, after one that warms up."""
    return _alternating(config, run)[0]


def _alternating(config: Config, *runs: Callable[[], object]) -> list[float]:
    """Of the fastest repeat of each; they take turns, so that all of them see the same machine."""
    for run in runs:
        run()
    rounds = [[_timed(config, run) for run in runs] for _ in range(config.repeats)]
    return [min(of_run) for of_run in zip(*rounds, strict=True)]


def _timed(config: Config, run: Callable[[], object]) -> float:
    if device_of(config.device).type != "cpu":
        return timed(run)[0]
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    answer(main, Config)
