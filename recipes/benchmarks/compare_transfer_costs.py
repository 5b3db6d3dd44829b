r"""One outer step of meta-transfer by every estimator: time, peak memory, agreement with the exact gradient.

    python recipes/benchmarks/compare_transfer_costs.py   # the target of meta_transfer.py
    python recipes/benchmarks/compare_transfer_costs.py --target resnet18 --inner-steps 2 10
    python recipes/benchmarks/compare_transfer_costs.py --data photos/ --source mtl/efficientnet-lite0 \
        --minibatches own half mean shared  # what a window's linearisation sees

Two minutes on one CPU thread for the first. The meta-networks are moved away from their start, where all pairs count
alike. Times are ratios within one run. Peaks are of tensors alive, without the networks. All weights of the target are
adapted, so what is remembered of K steps grows with K unless it waits elsewhere; here it is serialised, which stands in
for the host of an accelerator.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from command import Checked, Count, CountOrZero, Counts, Folder, OneOf, Positive, PositiveOrZero, answer
from measuring import MIB, flat, measure
from torch import Tensor

import mtl
from mtl.metagrad.storage import AbstractRows
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import EMBEDDED
from mtl.tools.files import write_csv
from mtl.tools.memory import LiveBytes
from mtl.transfer import Source

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import transfer_data
from helpers.transfer_runs import SMALL, Run, Training, Workplace, scheme_of, student_of, target_maker, virtual_problem

MINIBATCHES = {
    "own": "every virtual step has one of its own, and a window is linearised at its anchor's",
    "half": "the same, and a window is linearised at half of the images of its steps",
    "mean": "the same, at all of them",
    "shared": "the steps of a window share one",
}
NAMES = ("exact, unrolled", "rematerialised", "windowed, adaptive", "windowed, exact forward", "windowed, lazy",
         "truncated, half", "truncated, 1", "one-step", "first-order")  # fmt: skip


@dataclass(frozen=True)
class Config(Checked):
    data: str | None = None  # class folders, csv, parquet or hub id; the embedded letters when not given
    source: str = EMBEDDED  # a timm name, hf/<id>, or mtl/glyphs for the embedded letters
    seen: Annotated[transfer_data.Seen, tyro.conf.OmitArgPrefixes] = field(default_factory=transfer_data.Seen)
    sizes: transfer_data.PartSizes = field(default_factory=transfer_data.PartSizes)  # images per class of each part
    target: str = SMALL  # network to train: small (four convolutions) or any timm name
    target_args: str = "{}"  # arguments of the target network, as JSON
    checkpoint: str | None = None  # file of weights for the source
    stages: Count = 3  # pair the last so many stages of source and target
    only: tuple[Annotated[str, OneOf(NAMES)], ...] = ()  # estimators by name; all when empty
    inner_steps: Counts = (2, 5, 10, 20)  # inner steps, K
    window: Count = 5  # inner steps that share a linearisation, at most K
    inner_lr: Positive = 0.01  # step size of virtual steps
    inner_optimizer: Literal["sgd", "adam"] = "sgd"  # of virtual steps
    momentum: PositiveOrZero = 0.9  # momentum of virtual steps of SGD
    batch: Count = 16  # images of a minibatch
    minibatches: tuple[Annotated[str, OneOf(tuple(MINIBATCHES))], ...] = ("own",)  # own, half, mean or shared
    learn: Literal["both", "where", "pairs"] = "both"  # what and where; where alone; or a number per pair of stages
    warm_steps: CountOrZero = 100  # ordinary training steps before measuring
    repeats: Count = 3  # timed runs; the fastest counts
    threads: Count = 1  # CPU threads
    out: Folder = "runs/transfer_costs"  # folder for costs.csv


@dataclass(frozen=True)
class Serialised(mtl.metagrad.StateStorage):
    """Bytes that are no tensors."""

    def rows(self, count: int, like: Tensor) -> AbstractRows:
        return _Bytes()


class _Bytes(AbstractRows):
    def __init__(self) -> None:
        self._rows: dict[int, memoryview] = {}

    def write(self, row: int, values: list[Tensor]) -> None:
        torch.save(torch.cat([v.flatten() for v in values]), buffer := io.BytesIO())
        self._rows[row] = buffer.getbuffer()

    def read(self, row: int) -> Tensor:
        return torch.load(io.BytesIO(self._rows[row]))


def estimators(window: int, k: int) -> dict[str, mtl.metagrad.AbstractEstimator]:
    size = min(window, k)
    return {
        "exact, unrolled": mtl.Exact(),
        "rematerialised": mtl.Rematerialised(),
        "windowed, adaptive": mtl.Windowed(size),
        "windowed, exact forward": mtl.Windowed(size, "exact-forward"),
        "windowed, lazy": mtl.Windowed(size, "lazy"),
        "truncated, half": mtl.metagrad.Truncated(-(-k // 2) + 1),
        "truncated, 1": mtl.metagrad.Truncated(2),
        "one-step": mtl.metagrad.OneStep(),
        "first-order": mtl.FirstOrder(),
    }


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # the table says it
    rows: list[dict[str, Any]] = []
    print(
        f"{'K':>3} {'minibatches':11} {'estimator':24} {'time':>5} {'MiB':>7} {'states elsewhere':>16} {'cosine':>7} "
        f"{'norm':>6}  pulls"
    )
    make_problem = prepared(config)
    for k, minibatches in product(config.inner_steps, config.minibatches):
        problem, meta = make_problem(k, minibatches)
        exact, unit = torch.zeros(0), 0.0
        for name, estimator in wanted(config, k, minibatches).items():
            found, cost = measure(partial(estimator, problem, meta), config.repeats)
            grads = flat(found.grads)
            exact, unit = (exact, unit) if unit else (grads, cost.seconds)
            row = {"K": k, "minibatches": minibatches, "estimator": name}
            row |= {"seconds": cost.seconds, "time": cost.seconds / unit, "MiB": cost.live_mib}
            row |= {"MiB, states elsewhere": peak(estimator, replace(problem, storage=Serialised()), meta)}
            row |= {"cosine": cosine(grads, exact), "norm": float(grads.norm() / exact.norm())}
            row |= {"gradients": found.gradients, "pulls": found.pulls}
            row |= {"max_rho": float(found.diagnostics.get("max_rho", torch.zeros(())))}
            rows.append(row)
            print(
                f"{k:3} {minibatches:11} {name:24} {row['time']:5.2f} {row['MiB']:7.1f} "
                f"{row['MiB, states elsewhere']:16.1f} {row['cosine']:7.3f} {row['norm']:6.2f}  {found.pulls}",
                flush=True,
            )
    write_csv(rows, Path(config.out) / "costs.csv")
    return rows


def wanted(config: Config, k: int, minibatches: str) -> dict[str, mtl.metagrad.AbstractEstimator]:
    """The estimators asked for; where the linearisation of windows alone is another, the first and the windows."""
    asked = {n: e for n, e in estimators(config.window, k).items() if not config.only or n in config.only}
    if minibatches not in ("half", "mean"):
        return asked
    windows = ("windowed, adaptive", "windowed, exact forward")
    return {n: e for i, (n, e) in enumerate(asked.items()) if i == 0 or n in windows}


def prepared(config: Config) -> Callable[[int, str], tuple[mtl.InnerProblem, Tensors]]:
    """A target after some ordinary steps; K and the kind of minibatches to its inner problem."""
    torch.manual_seed(0)
    place = workplace(config)
    student = student_of(place)
    run = Run("rematerialised", 1, 0, inner_lr=config.inner_lr)
    weighting = scheme_of(run, place, student).weighting
    for parameter in weighting.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    warm(student, place.data, config)

    def problem(k: int, minibatches: str) -> tuple[mtl.InnerProblem, Tensors]:
        window = min(config.window, k)
        share = {"half": 0.5, "mean": 1.0}.get(minibatches)
        images = None if share is None else max(1, round(share * window * config.batch))
        of_k = replace(run, inner_steps=k)
        scheme = replace(scheme_of(of_k, place, student), weighting=weighting, window_images=images)
        training = replace(place.training, hold=window if minibatches == "shared" else 1)
        return virtual_problem(scheme, of_k, replace(place, training=training), 0), scheme.meta

    return problem


def workplace(config: Config) -> Workplace:
    training = Training(batch=config.batch, inner_momentum=config.momentum, window=config.window, learn=config.learn)
    backbone = mtl.load_backbone(config.source, checkpoint=config.checkpoint, **config.seen.of_source)
    source = Source(backbone, most=config.stages)
    if config.data is None:
        data = transfer_data.embedded(config.sizes, source)
    else:
        images = transfer_data.opened(config.data, config.sizes)
        data = transfer_data.own(images, config.sizes, source, config.seen, Path(config.out))
    make_target = target_maker(config.target, config.target_args, data.classes, data.images.shape[1])
    return Workplace(training, data, source, make_target, config.stages)


def warm(student: torch.nn.Module, data: transfer_data.Data, config: Config) -> None:
    optimizer = torch.optim.SGD(student.parameters(), 0.1, 0.9)
    for step in range(config.warm_steps):
        batch = data.minibatch(("train",), config.batch, 1, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(batch.images)[0], batch.labels).backward()
        optimizer.step()


def peak(estimator: mtl.metagrad.AbstractEstimator, problem: mtl.InnerProblem, meta: Tensors) -> float:
    with LiveBytes() as counter:
        estimator(problem, meta)
    return counter.peak / MIB


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm())) if a.any() else float("nan")


if __name__ == "__main__":
    answer(main, Config)
