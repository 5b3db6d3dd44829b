"""Adapting to many small tasks from raw images: one by one, and in one call; the ratio, in one run.

    python recipes/benchmarks/adapt_many.py
    python recipes/benchmarks/adapt_many.py --tasks 500 --backbone mtl/efficientnet-lite0 --image-size 224

Images are random pictures as PIL images, which costs as much as real ones. Half of the tasks have one more example than
the others, so that there are two sizes of tasks. Three rows:

    one by one   mtl.adapt task by task, the generator loaded each time, as a loop over tasks does
    one learner  learner.adapt task by task
    one call     learner.adapt_many
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from command import Checked, Count, Device, Folder, TwoOrMore, answer
from measuring import clock_of, device_of, resident_mib, timed
from PIL import Image

import mtl
from mtl.tools.files import write_csv

Tasks = dict[str, dict[str, list[Image.Image]]]
Row = dict[str, str | float]


@dataclass(frozen=True)
class Config(Checked):
    backbone: str = "mtl/glyphs"  # any network for images
    tasks: TwoOrMore = 500  # number of tasks
    ways: TwoOrMore = 5  # classes of a task
    shots: Count = 5  # examples of a class
    image_size: Count = 64  # side of the pictures before preprocessing
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    out: Folder = "runs/adapt_many"  # folder for adapt_many.csv


def main(config: Config) -> list[Row]:
    torch.set_num_threads(config.threads)
    backbone = mtl.load_backbone(config.backbone, sites="none", levels="all").to(device_of(config.device))
    learner = mtl.load_generator("mtl/universal", backbone)
    tasks = random_tasks(config)
    learner.adapt(tasks["task 0"], cross_validate=True)  # kernels are loaded
    ways: dict[str, Callable[[], Mapping[str, Any]]] = {
        "one by one": lambda: {name: mtl.adapt(backbone, items) for name, items in tasks.items()},
        "one learner": lambda: {n: learner.adapt(items, cross_validate=True) for n, items in tasks.items()},
        "one call": lambda: learner.adapt_many(tasks, cross_validate=True, progress=False),
    }
    rows: list[Row] = []
    slowest = 0.0
    for name, run in ways.items():
        seconds, found = timed(run, clock_of(backbone.device))
        assert len(found) == config.tasks
        slowest = slowest or seconds
        per_task = f"{1000 * seconds / config.tasks:.1f}"
        row: Row = {"how": name, "seconds": f"{seconds:.2f}", "ms per task": per_task}
        row |= {"times faster": f"{slowest / seconds:.1f}", "peak MiB so far": f"{resident_mib():.0f}"}
        rows.append(row)
        print("   ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        del found
    write_csv(rows, f"{config.out}/adapt_many.csv")
    return rows


def random_tasks(config: Config) -> Tasks:
    random = np.random.default_rng(0)
    size = (config.image_size, config.image_size, 3)

    def images(n: int) -> list[Image.Image]:
        return [Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)) for _ in range(n)]

    return {
        f"task {i}": {f"class {c}": images(config.shots + (i % 2 and c == 0)) for c in range(config.ways)}
        for i in range(config.tasks)
    }


if __name__ == "__main__":
    answer(main, Config)
