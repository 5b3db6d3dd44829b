"""Time, peak memory and closeness to the exact meta-gradient of every estimator, on a timm ViT modulated everywhere.

    python recipes/benchmark_estimators.py
    python recipes/benchmark_estimators.py --depth 12 --inner-steps 5 10 20     # the full vit_tiny

Two minutes by default; times are ratios within one run, on a busy machine +-0.2. At K = 10 expect (time, MiB, cosine):

    unrolled 1, 410, 1    rematerialised 1.3, 63, 1    adaptive .65, 63, .9999    first-order .5, 60, .992
    lazy .38, 63, .9998   MAML, 2 large steps .37, 62, .9998: all that lazy is with plain steps on a fixed batch

Memory is flat in K but for the unrolled. With --step-size 0.02 this random network is past the windows' cliff.
"""

from __future__ import annotations

import csv
import timeit
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mtl


@dataclass(frozen=True)
class Config:
    backbone: str = "vit_tiny_patch16_224"  # any timm name
    img_size: int = 64  # pixels
    depth: int = 2  # blocks
    sites: Literal["norm", "ssf"] = "ssf"  # where scale and shift go
    inner_steps: tuple[int, ...] = (5, 10)  # K
    step_size: float = 0.002  # of the inner loop
    ways: int = 5  # classes
    shots: int = 5  # support examples per class
    queries: int = 15  # query examples per class
    repeats: int = 2  # the fastest counts
    threads: int = 1  # processor threads
    out: str = "runs/benchmark_estimators.csv"  # the table as csv; the picture lies beside it


SIZE = 5  # of every window, and of the truncation
PULLS = {"": "reverse", ", finite difference": "finite-difference"}
MODES: tuple[Literal["adaptive", "exact-forward", "lazy"], ...] = ("adaptive", "exact-forward", "lazy")
ESTIMATORS: dict[str, mtl.AbstractEstimator] = {
    "exact, unrolled": mtl.Exact(),
    **{f"rematerialised{name}": mtl.Rematerialised(pull) for name, pull in PULLS.items()},
    **{f"windowed(5), {m}{n}": mtl.Windowed(SIZE, m, pull=pull) for m in MODES for n, pull in PULLS.items()},
    "truncated(5)": mtl.Truncated(SIZE),
    "first-order": mtl.FirstOrder(),
}
CONTROL = "MAML, K / 5 steps, each 5 times as large"


class LiveBytes(TorchDispatchMode):
    """Peak bytes of storages made inside, whoever holds them. A process's peak would show what ran before, too."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for storage in (v.untyped_storage() for v in tree_leaves(found) if isinstance(v, torch.Tensor)):
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                self.peak = max(self.peak, sum(self.alive.values()))
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        return found


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    learner, episode = workload(config)
    meta = learner.generator(learner.view(episode.support))
    rows: list[dict[str, Any]] = []
    for k in config.inner_steps:
        problem, exact, unit = replace(learner.problem(episode), num_steps=k), None, 0.0
        todo = [(name, e, problem) for name, e in ESTIMATORS.items()]
        todo += [(CONTROL, mtl.Rematerialised(), coarse(problem, learner))] if k % SIZE == 0 else []
        for name, estimator, solved in todo:
            found, row = measure(partial(estimator, solved, meta), config.repeats)
            exact, unit = (found, row["seconds"]) if exact is None else (exact, unit)
            row |= {"cosine": torch.cosine_similarity(found, exact, 0).item(), "time": row["seconds"] / unit}
            rows.append({"K": k, "estimator": name, "norm ratio": (found.norm() / exact.norm()).item()} | row)
    show(rows)
    write(rows, Path(config.out))
    return rows


def workload(config: Config) -> tuple[mtl.MetaLearner, mtl.Episode]:
    torch.manual_seed(0)
    backbone = mtl.load_backbone(
        config.backbone, pretrained=False, sites=config.sites, img_size=config.img_size, depth=config.depth
    )
    draw = lambda n: mtl.Examples(  # noqa: E731
        torch.randn(1, config.ways * n, 3, config.img_size, config.img_size), torch.arange(config.ways).repeat(n)[None]
    )
    episode = mtl.Episode(draw(config.shots), draw(config.queries), config.ways)
    return mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width, config.step_size)), episode


def coarse(problem: mtl.InnerProblem, learner: mtl.MetaLearner) -> mtl.InnerProblem:
    """Fewer, larger steps: what lazy windows have to beat."""
    large = mtl.InnerSGD(lambda m: {k: SIZE * v for k, v in learner.generator.step_sizes(m).items()})
    return replace(problem, num_steps=problem.num_steps // SIZE, optimizer=large)


def measure(run: Callable[[], mtl.MetaGradient], repeats: int) -> tuple[torch.Tensor, dict[str, Any]]:
    with LiveBytes() as counter:
        result = run()
    seconds = timeit.repeat(run, number=1, repeat=repeats)
    cost = {"seconds": min(seconds), "MiB": counter.peak / 2**20, "gradients": result.gradients, "pulls": result.pulls}
    return torch.cat([g.flatten() for g in result.grads.values()]), cost


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'K':>3} {'estimator':47} {'time':>6} {'MiB':>8} {'cosine':>8} {'norm':>6} {'gradients':>9} {'pulls':>5}")
    for r in rows:
        print("{K:>3} {estimator:47} {time:6.2f} {MiB:8.1f} {cosine:8.4f}".format(**r), end=" ")
        print("{norm ratio:6.2f} {gradients:9} {pulls:5}".format(**r))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        (writer := csv.DictWriter(f, list(rows[0]))).writeheader()
        writer.writerows(rows)
    steps = list(dict.fromkeys(r["K"] for r in rows))
    figure = Figure((6 * len(steps), 5), layout="constrained")
    for panel, k in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        for i, r in enumerate(r for r in rows if r["K"] == k):
            panel.scatter(r["time"], r["cosine"], 2 * r["MiB"], [colormaps["tab20"](i)], label=r["estimator"])
        panel.set(title=f"{k} inner steps", xlabel="time, unrolled = 1", ylabel="cosine to exact")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=0.4)
    figure.savefig(path.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Config))
