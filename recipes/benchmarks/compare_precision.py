"""What low precision of the frozen network costs the meta-gradient: cosine and norm against float32, by estimator.

    python recipes/benchmarks/compare_precision.py   # a timm ViT and a small BERT
    python recipes/benchmarks/compare_precision.py --networks vit --depth 12   # the full vit_tiny; for a GPU

Scale, shift and a cosine head are adapted, and always in float32, as are all gradients. Ten minutes on a processor
without arithmetic in few bits, where this says how close and not how fast.

    bf16, fp16      the network under autocast; float16 with the loss scale that training uses
    bf16, stored    its weights in bfloat16, no autocast

Cosines are of all meta-parameters together: where the inner loop starts, its step sizes, a weight per example in the
inner loss and a temperature of the outer one. docs/large-backbones.md reads the table.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import compare_estimators
import torch
from command import Checked, Count, Device, Folder, answer
from measuring import flat

import mtl
from mtl.tools.files import write_csv

FD = mtl.metagrad.FiniteDifference(0.1)  # the radius that suits bfloat16
ESTIMATORS: dict[str, mtl.metagrad.AbstractEstimator] = {
    **{k: e for k, e in compare_estimators.ESTIMATORS.items() if "difference" not in k},
    "rematerialised, finite difference": mtl.Rematerialised(FD),
    "windowed(5), adaptive, finite difference": mtl.Windowed(5, pull=FD),
    "sama": mtl.metagrad.SAMA(FD),
}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Config(Checked):
    networks: tuple[Literal["vit", "bert"], ...] = ("vit", "bert")  # vit_tiny_patch16_224 at 64 px; a small random BERT
    depth: Count = 2  # number of blocks
    inner_steps: Count = 5  # inner steps, K
    shots: Count = 1  # support examples per class
    queries: Count = 2  # query examples per class
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    out: Folder = "runs/compare_precision"  # folder for precision.csv


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)
    shape = compare_estimators.Config(
        depth=config.depth, shots=config.shots, queries=config.queries, out=config.out, device=config.device
    )
    rows: list[dict[str, Any]] = []
    Path(config.out).mkdir(parents=True, exist_ok=True)
    for network in config.networks:
        learner, episode = compare_estimators.workload(network, shape)
        stored = stored_in_bfloat16(learner)
        print(f"\n{network:42} {'bf16':>17} {'fp16':>17} {'bf16, stored':>17}")
        for name, estimator in ESTIMATORS.items():
            exact = meta_gradient(estimator, learner, episode, config)
            row: dict[str, Any] = {"network": network, "estimator": name}
            for label, dtype in PRECISIONS.items():
                learner.backbone.configure(precision=dtype)
                row |= agreement(label, estimator, learner, episode, config, exact)
                learner.backbone.configure(precision=None)
            row |= agreement("stored", estimator, stored, episode, config, exact)
            rows.append(row)
            cells = (f"{row[f'cosine {c}']:9.5f} ({row[f'norm {c}']:5.3f})" for c in (*PRECISIONS, "stored"))
            print(f"{name:42}", *cells, flush=True)
    write_csv(rows, Path(config.out) / "precision.csv")
    return rows


def stored_in_bfloat16(learner: mtl.MetaLearner) -> mtl.MetaLearner:
    """The same learner on the same weights, rounded."""
    options: dict[str, Any] = (learner.backbone.load_args or {}) | {"dtype": "bfloat16"}
    backbone = mtl.load_backbone(**options)
    backbone.model.load_state_dict(learner.backbone.model.state_dict())
    return mtl.MetaLearner(backbone.to(learner.backbone.device), learner.generator)


def meta_gradient(
    estimator: mtl.metagrad.AbstractEstimator, learner: mtl.MetaLearner, episode: mtl.Episode, config: Config
) -> torch.Tensor:
    problem, meta = compare_estimators.typed_problem(learner, episode, config.inner_steps)
    return flat(estimator(replace(problem, execution=learner.backbone.execution), meta).grads)


def agreement(
    label: str,
    estimator: mtl.metagrad.AbstractEstimator,
    learner: mtl.MetaLearner,
    episode: mtl.Episode,
    config: Config,
    exact: torch.Tensor,
) -> dict[str, float]:
    """Cosine and norm relative to float32; nan for what an estimator refuses."""
    try:
        found = meta_gradient(estimator, learner, episode, config)
    except RuntimeError:
        return {f"cosine {label}": float("nan"), f"norm {label}": float("nan")}
    cosine = torch.cosine_similarity(found, exact, 0)
    return {f"cosine {label}": float(cosine), f"norm {label}": float(found.norm() / exact.norm())}


if __name__ == "__main__":
    answer(main, Config)
