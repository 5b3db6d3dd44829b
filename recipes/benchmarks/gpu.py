"""Everything that needs an accelerator, measured in one process: estimators and plain PyTorch, precision, a large ViT.

    python recipes/benchmarks/gpu.py --out runs/gpu   # about two minutes on an H100
    python recipes/benchmarks/gpu.py --parts large

    peers       one meta-gradient through a user's own vit_small at 224 px: plain PyTorch and estimators
    precision   bfloat16 and float16 against float32 on vit_tiny at 64 px: cosine of the meta-gradient
    large       one outer step of ViT-L/16 with every block modulated, weights stored in bfloat16; GiB beside the
                planner's prediction

Weights are random, which costs as much as trained ones. One task, 5-way 5-shot. Every row is printed and written
(results.json) as soon as it is there, and running out of memory is a row like any other.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import compare_estimators
import compare_peers
import compare_precision
import large_backbone
import torch
from command import Checked, Count, CountOrZero, Counts, Device, Folder, answer
from measuring import Cost, device_of, measure

import mtl
from mtl.planning import PlanOptions
from mtl.planning.choices import Activations
from mtl.planning.workbench import Workbench
from mtl.tools.files import write_csv, write_whole

Part = Literal["peers", "precision", "large"]
Row = dict[str, Any]
GIB = 2**30


@dataclass(frozen=True)
class Config(Checked):
    parts: tuple[Part, ...] = ("large", "peers", "precision")  # in this order
    peers: str = "vit_small_patch16_224"  # network of the comparison with plain PyTorch
    peers_size: Count = 224  # its pixels
    inner_steps: Counts = (5, 20)  # K, of that comparison
    depth: Count = 12  # blocks of the networks of peers and precision
    large: str = "vit_large_patch16_224"  # network of the large outer step
    large_steps: Count = 20  # inner steps of the large outer step
    large_shots: Count = 5  # support and query examples per class of the large outer step
    repeats: Count = 1  # after one warm-up; the fastest counts
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    threads: CountOrZero = 0  # processor threads; all cores when 0
    out: Folder = "runs/gpu"  # results.json and a csv for each part


def main(config: Config) -> dict[Part, list[Row]]:
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)
    device, out = device_of(config.device), Path(config.out)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}", flush=True)
    measured: dict[Part, list[Row]] = {}
    for part in config.parts:
        start = time.perf_counter()
        rows = measured[part] = []
        for row in PARTS[part](config, device):
            rows.append(row)
            print("  ".join(f"{k} {_cell(v)}" for k, v in row.items()), flush=True)
            _write({"device": name, "torch": torch.__version__, "config": asdict(config), **measured}, out)
        write_csv(rows, out / f"{part}.csv")
        print(f"--- {part}: {time.perf_counter() - start:.0f} s", flush=True)
        _empty_cache()
    return measured


def _write(results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "results.json", json.dumps(results, indent=2).encode())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- peers -----------------------------------------------------------------------------------------------------------

EXACT = "mtl, rematerialised"
COMPARED = (
    EXACT, "plain PyTorch, unrolled", "mtl, rematerialised, finite difference", "mtl, windowed(5), adaptive",
    "mtl, windowed(5), one-sided difference", "mtl, windowed(5), auto", "mtl, windowed(5), lazy", "mtl, first-order",
)  # fmt: skip


def peers(config: Config, device: torch.device) -> Iterator[Row]:
    """Seconds, MiB above weights and inputs, and cosine to the exact meta-gradient, by K and method."""
    sizes = compare_peers.Config(
        backbone=config.peers, depth=config.depth, image_size=config.peers_size, device=str(device)
    )
    task = compare_peers.task_of("vit", sizes)
    for k in config.inner_steps:
        exact = torch.zeros(0)
        for name in COMPARED:
            row: Row = {"K": k, "method": name}
            found = attempt(lambda name=name, k=k: compare_peers.solve(name, *task, k, sizes.step_size), config.repeats)
            if isinstance(found, str):
                yield row | {"failed": found}
                continue
            grads = torch.cat([g.detach().flatten() for g in found[0]])
            exact = grads if name == EXACT else exact
            cosine = float(torch.cosine_similarity(grads, exact, 0)) if exact.numel() else math.nan
            yield row | {"seconds": found[1].seconds, "peak MiB": found[1].peak_mib, "cosine": cosine}


def attempt(run: Callable[[], Any], repeats: int) -> tuple[Any, Cost] | str:
    """Result and cost of a call after one to warm up, or the first line of what went wrong."""
    try:
        return measure(run, repeats, warm_up=True, live=False)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        failed = str(error).splitlines()[0].split(". ")[0]
    _empty_cache()  # outside the except clause, whose traceback holds tensors
    return failed


def _empty_cache() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- precision -------------------------------------------------------------------------------------------------------

WINDOWED = "windowed(5), adaptive"


def precision(config: Config, device: torch.device) -> Iterator[Row]:
    """Cosine and norm of each estimator's meta-gradient in few bits, relative to its own in float32."""
    shape = compare_estimators.Config(depth=config.depth, shots=1, queries=2, device=str(device), out=config.out)
    settings = compare_precision.Config(inner_steps=5)
    learner, episode = compare_estimators.workload("vit", shape)
    for name in (WINDOWED, "rematerialised, finite difference", f"{WINDOWED}, finite difference"):
        estimator = compare_precision.ESTIMATORS[name]
        exact = compare_precision.meta_gradient(estimator, learner, episode, settings)
        row: Row = {"estimator": name}
        for label, dtype in compare_precision.PRECISIONS.items():
            learner.backbone.configure(precision=dtype)
            row |= compare_precision.agreement(label, estimator, learner, episode, settings, exact)
            learner.backbone.configure(precision=None)
        yield row


# --- large -----------------------------------------------------------------------------------------------------------

LEAN = mtl.Rematerialised("finite-difference")  # needs what windows with finite differences need; the planner runs it


def large(config: Config, device: torch.device) -> Iterator[Row]:
    """Seconds and GiB of an outer step with and without block checkpointing, and what the planner predicts."""
    start = time.perf_counter()
    settings = large_backbone.Config(
        config.large, last_k=None, examples_per_chunk=None, shots=config.large_shots, queries=config.large_shots,
        inner_steps=config.large_steps,
    )  # fmt: skip
    standing = _allocated(device)
    learner, task = large_backbone.workload(settings, device)
    yield {"network": config.large, "seconds to make it": time.perf_counter() - start}
    place = planned(settings)
    for keeping in (Activations("everything"), Activations("block inputs", checkpoint_blocks=True)):
        keeping.apply(learner.backbone)
        weights = _allocated(device) - standing
        found = attempt(lambda: large_backbone.meta_step(learner, task), config.repeats)
        row: Row = {"K": config.large_steps, "kept": keeping.name, "weights GiB": weights}
        if isinstance(found, str):
            row |= {"failed": found}
        else:
            row |= {"seconds": found[1].seconds, "peak GiB": weights + found[1].peak_mib / 1024}
            row |= {k: found[0][k] for k in ("pulls", "loss")}
        yield row | {"predicted GiB": place.peak(LEAN, keeping, config.large_steps) / GIB}


def _allocated(device: torch.device) -> float:
    """GiB."""
    return torch.cuda.memory_allocated() / GIB if device.type == "cuda" else 0.0


def planned(settings: large_backbone.Config) -> Workbench:
    """The same learner on tensors without values, where the planner counts bytes."""
    sizes = PlanOptions(
        settings.backbone, ways=settings.ways, shots=settings.shots, queries=settings.queries, sites=settings.sites,
        inner_steps=settings.inner_steps, last_k=settings.last_k, precision="bf16-stored",
    )  # fmt: skip
    return Workbench(sizes)


PARTS: dict[Part, Callable[[Config, torch.device], Iterator[Row]]] = {
    "peers": peers,
    "precision": precision,
    "large": large,
}

if __name__ == "__main__":
    answer(main, Config)
