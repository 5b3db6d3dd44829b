"""Time, peak memory and closeness to the exact meta-gradient of every estimator, on a timm ViT modulated everywhere.

    python recipes/benchmark_estimators.py
    python recipes/benchmark_estimators.py --depth 12 --inner-steps 5 10 20     # the full vit_tiny

A minute by default. Expect memory flat in K for all but Exact. Times are ratios within one run. With --step-size 0.02
this network of random weights is past the windows' cliff: cosines fall, and nothing in the losses shows it.
"""

from __future__ import annotations

import csv
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
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
    threads: int = 1  # processor threads
    out: str = "runs/benchmark_estimators.csv"  # the table as csv


ESTIMATORS = {
    "exact, unrolled": mtl.Exact(),
    "rematerialised": mtl.Rematerialised(),
    "rematerialised, finite difference": mtl.Rematerialised(pull="finite-difference"),
    "windowed(5), adaptive": mtl.Windowed(),
    "windowed(5), adaptive, finite difference": mtl.Windowed(pull="finite-difference"),
    "windowed(5), exact forward": mtl.Windowed(mode="exact-forward"),
    "windowed(5), lazy": mtl.Windowed(mode="lazy"),
    "truncated(5)": mtl.Truncated(steps=5),
    "first-order": mtl.FirstOrder(),
}


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages at their allocation and release: exact, and blind to what the allocator keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


def main(config: Config) -> list[dict[str, float | str]]:
    torch.set_num_threads(config.threads)
    learner, episode = workload(config)
    meta = {k: v.detach() for k, v in learner.generator(learner.view(episode.support)).items()}
    rows: list[dict[str, float | str]] = []
    for k in config.inner_steps:
        learner.inner_steps = k
        problem = learner.problem(episode)
        exact = mtl.Exact()(problem, meta)
        for name, estimator in ESTIMATORS.items():
            rows.append({"K": k, "estimator": name} | measure(lambda e=estimator, p=problem: e(p, meta), exact))
        unrolled = rows[-len(ESTIMATORS)]
        for row in rows[-len(ESTIMATORS) :]:
            row["time"] = float(row["seconds"]) / float(unrolled["seconds"])
    show(rows, Path(config.out))
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


def measure(run: Callable[[], mtl.MetaGradient], exact: mtl.MetaGradient) -> dict[str, float]:
    with LiveBytes() as counter:
        result = run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    found, expected = (torch.cat([g.flatten() for g in r.grads.values()]) for r in (result, exact))
    return {
        "seconds": seconds,
        "time": 0.0,
        "MiB": counter.peak / 2**20,
        "cosine": torch.cosine_similarity(found, expected, dim=0).item(),
        "norm ratio": (found.norm() / expected.norm()).item(),
        "gradients": result.gradients,
        "pulls": result.pulls,
    }


def show(rows: list[dict[str, float | str]], path: Path) -> None:
    print(f"{'K':>3} {'estimator':42} {'time':>6} {'MiB':>8} {'cosine':>8} {'norm':>6} {'gradients':>9} {'pulls':>5}")
    for r in rows:
        print(
            f"{r['K']:>3} {r['estimator']:42} {r['time']:6.2f} {r['MiB']:8.1f} {r['cosine']:8.4f} "
            f"{r['norm ratio']:6.2f} {r['gradients']:9} {r['pulls']:5}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Config))
