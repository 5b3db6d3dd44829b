"""The cliff of windowed estimators, as a picture: agreement with the exact gradient against step size times curvature.

    python recipes/benchmarks/draw_cliff.py

The ViT of compare_estimators.py; two minutes on one thread. Linear windows fall where window times step size times
curvature comes near 2, on what acts inside the inner loss (type L) first; those that use the matrix of rank one of
their product, the default, do not, and adaptive ones take more pulls beside.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import compare_estimators
import torch
from command import Checked, Count, Folder, Positives, answer
from matplotlib.figure import Figure

import mtl
from mtl.tools.files import atomic_write
from mtl.tools.progress import ProgressBar


@dataclass(frozen=True)
class Config(Checked):
    depth: Count = 2  # number of blocks
    inner_steps: Count = 10  # inner steps, K
    curvatures: Positives = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2)  # step size times curvature
    threads: Count = 1  # CPU threads
    out: Folder = "runs/compare_estimators"  # folder for cliff.png


SIZE = 5  # of the windows
ADAPTIVE = f"windowed({SIZE}), adaptive"
LINEAR = f"windowed({SIZE}), exact-forward, linear"
DRAWN = (ADAPTIVE, f"windowed({SIZE}), exact-forward", LINEAR, f"windowed({SIZE}), lazy", "first-order")
ESTIMATORS = {name: compare_estimators.ESTIMATORS[name] for name in DRAWN}
SHOWN = {"I": "initial scale and shift (I)", "L": "weights of the inner loss (L)"}


def main(config: Config) -> dict[str, list[mtl.metagrad.Agreement]]:
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # drawn as zero
    found: dict[str, list[mtl.metagrad.Agreement]] = {name: [] for name in ESTIMATORS}
    pulls = []
    for curvature in ProgressBar(config.curvatures, unit="step size"):
        settings = compare_estimators.Config(depth=config.depth, curvature=curvature, out=config.out)
        pair = compare_estimators.workload("vit", settings)
        problem, meta = compare_estimators.typed_problem(*pair, config.inner_steps)
        for name, estimator in ESTIMATORS.items():
            found[name].append(mtl.metagrad.self_check(estimator, problem, meta))
        pulls.append(mtl.Windowed(SIZE)(problem, meta).pulls)
    draw(config, found, pulls)
    return found


def draw(config: Config, found: dict[str, list[mtl.metagrad.Agreement]], pulls: list[int]) -> None:
    x = [SIZE * c for c in config.curvatures]
    figure = Figure((11, 4), layout="constrained")
    for panel, (kind, title) in zip(figure.subplots(1, 2), SHOWN.items(), strict=True):
        for name, checks in found.items():
            worst = [min(c.cosine[k] for k in compare_estimators.TYPES[kind]) for c in checks]
            panel.plot(x, [0 if w != w else w for w in worst], "o-", label=name)  # nan: structurally zero
        panel.axvline(2, color="grey", linestyle=":")
        panel.set(title=title, xlabel=f"{SIZE} steps x step size x largest curvature", xscale="log", ylim=(-1.05, 1.05))
        panel.set_ylabel("cosine to the exact gradient")
    for at, n in zip(x, pulls, strict=True):
        figure.axes[0].annotate(str(n), (at, -0.95), ha="center", size=8)
    figure.axes[0].annotate("pulls of adaptive windows:", (x[0], -0.8), size=8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found))
    Path(config.out).mkdir(parents=True, exist_ok=True)
    with atomic_write(Path(config.out) / "cliff.png") as draft:
        figure.savefig(draft, dpi=110)


if __name__ == "__main__":
    answer(main, Config)
