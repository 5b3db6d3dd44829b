"""How far the planner is from the truth: its predicted peaks against those of real runs on the CPU.

    python recipes/benchmarks/calibrate_planning.py   # seven small networks
    python recipes/benchmarks/calibrate_planning.py --networks vit llama --precision bf16
    python recipes/benchmarks/calibrate_planning.py --resident   # and what the process really takes

Fifteen minutes by default on one thread. Predicted: one or two inner steps on tensors without values, one estimator for
all of its kind. Measured: all steps of the estimator itself on real tensors, with every storage counted while it lives.
Both with everything that is there all the time. docs/planning.md shows the table.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from command import Checked, Count, Folder, OneOf, answer
from measuring import resident_mib

import mtl
from mtl.planning import Plan, PlanOptions, plan
from mtl.planning.choices import UNROLLED, Activations, activation_options
from mtl.planning.networks import CPU
from mtl.planning.options import Precision
from mtl.planning.work import with_pull
from mtl.planning.workbench import Workbench
from mtl.tools.files import atomic_write, write_csv

TEXT: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    | {"vocab_size": 500},
    "gpt2": {"n_embd": 128, "n_layer": 3, "n_head": 4, "vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0},
    "llama": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 384, "vocab_size": 500},
}
IMAGES = {"vit": "test_vit", "convnext": "test_convnext", "resnet": "resnet10t", "efficientnet": "test_efficientnet"}
NetworkName = Annotated[str, OneOf((*IMAGES, *TEXT))]


@dataclass(frozen=True)
class Config(Checked):
    # some of vit, convnext, resnet, efficientnet, bert, gpt2, llama
    networks: tuple[Annotated[str, OneOf((*IMAGES, *TEXT))], ...] = (*IMAGES, *TEXT)
    inner_steps: Count = 4  # inner steps, K
    precision: Precision = "fp32"  # precision of the frozen network
    every: bool = False  # run every estimator and pull, not only one of each kind
    resident: bool = False  # also measure the resident memory of a fresh process
    out: Folder = "runs/calibrate_planning"  # folder for calibration.csv and calibration.md


@dataclass(frozen=True)
class Row:
    network: str
    estimator: str
    pull: str
    keeping: str
    predicted_mib: float
    measured_mib: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted_mib / self.measured_mib - 1


KINDS = {
    (UNROLLED, ""), ("rematerialised", "reverse"), ("rematerialised", "forward-over-reverse"),
    ("rematerialised", "finite-difference"), ("windowed(2), adaptive", "reverse"), ("first-order", ""),
    ("windowed(2), adaptive", "finite-difference"), ("windowed(2), lazy", "reverse"), ("neumann(10)", "reverse"),
}  # fmt: skip


def main(config: Config) -> list[Row]:
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)
    rows: list[Row] = []
    for network in config.networks:
        with tempfile.TemporaryDirectory() as folder:
            planned = plan_config(network, Path(folder), config)
            found = list(compare(network, plan(planned), config.every))
            rows += found
            print(f"{network}: {len(found)} choices, {said(found)}", flush=True)
            if config.resident:
                print_resident(planned)
    print(f"all: {len(rows)} choices, {said(rows)}")
    write(rows, Path(config.out))
    return rows


def plan_config(network: str, folder: Path, config: Config) -> PlanOptions:
    name = IMAGES.get(network) or str(folder)
    if network in TEXT:
        (folder / "config.json").write_text(json.dumps({"model_type": network, **TEXT[network]}))
    size = 64 if network in IMAGES else None
    return PlanOptions(
        name, image_size=size, text_length=48, inner_steps=config.inner_steps, window=2, precision=config.precision,
        examples_per_chunk=13,
    )  # fmt: skip


def compare(network: str, found: Plan, every: bool) -> Iterator[Row]:
    options = found.options
    place = Workbench(options, CPU)
    made, kept = mtl.metagrad.representatives(options.window), {k.name: k for k in activation_options(options)}
    for p in found.predicted:
        if every or (p.estimator, p.pull) in KINDS:
            estimator = with_pull(made[p.estimator], p.pull)
            bytes_ = place.measured(estimator, kept[p.activations], options.inner_steps)
            yield Row(network, p.estimator, p.pull, p.activations, 1024 * p.gib, bytes_ / 2**20)


def said(rows: list[Row]) -> str:
    errors = sorted(abs(r.error) for r in rows)
    worst = max(rows, key=lambda r: abs(r.error))
    name = f"{worst.network}, {worst.estimator} {worst.pull}, keeping {worst.keeping}"
    return f"error at most {errors[-1]:.2%} ({name}), median {errors[len(errors) // 2]:.2%}"


def print_resident(planned: PlanOptions) -> None:
    """What allocator and runtime add: growth of a fresh process's resident set against the bytes counted."""
    for estimator in (mtl.Exact(), mtl.Rematerialised(), mtl.Rematerialised("finite-difference")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            counted, resident = pool.apply(_resident, (planned, estimator))
        print(f"    {estimator!r}: {counted:.0f} MiB counted, resident set grows by {resident:.0f} MiB")


def _resident(planned: PlanOptions, estimator: mtl.metagrad.AbstractEstimator) -> tuple[float, float]:
    torch.set_num_threads(1)
    keeping = Activations("everything")
    place = Workbench(planned, CPU)
    place.learner(0, estimator).problem(place.episode)
    before = resident_mib()
    from mtl.planning.measuring import meta_step

    meta_step(place.learner(planned.inner_steps, estimator), place.episode)
    grown = resident_mib() - before
    return (place.measured(estimator, keeping, planned.inner_steps) - place.permanent) / 2**20, grown


def write(rows: list[Row], out: Path) -> None:
    write_csv([asdict(r) | {"error": r.error} for r in rows], out / "calibration.csv")
    lines = ["| network | estimator | pull | keeping | predicted, MiB | measured, MiB | error |"]
    lines.append("|---|---|---|---|---:|---:|---:|")
    for r in rows:
        sizes = f"{r.predicted_mib:.1f} | {r.measured_mib:.1f} | {r.error:+.2%}"
        lines.append(f"| {r.network} | {r.estimator} | {r.pull or '-'} | {r.keeping} | {sizes} |")
    with atomic_write(out / "calibration.md") as draft:
        draft.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    answer(main, Config)
