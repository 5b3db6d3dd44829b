"""The same inner loop through other libraries: seconds and peak memory of one exact meta-gradient, each in a process.

    pip install -e ".[bench]"
    python recipes/benchmarks/compare_peers.py
    python recipes/benchmarks/compare_peers.py --depth 12   # the full vit_tiny

5-way 5-shot with 75 queries, scale and shift after every layer of a frozen vit_tiny at 64 px and a cosine head adapted
by plain gradient descent, one task, one thread. Every process builds the same problem from the same seed; its gradient
is compared with plain PyTorch's. Peak is resident memory above that before the meta-gradient. Ten minutes by default.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from command import Checked, Count, Counts, Device, Folder, Positive, answer
from measuring import device_of, measure
from torch import Tensor, nn

import mtl
from mtl.tools.files import write_csv


@dataclass(frozen=True)
class Config(Checked):
    backbone: str = "vit_tiny_patch16_224"  # a vision transformer of timm, with random weights
    depth: Count = 4  # number of blocks
    inner_steps: Counts = (5, 10, 20)  # inner steps, K
    step_size: Positive = 0.002  # step size of the inner loop
    image_size: Count = 64  # width and height of images, in pixels
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    repeats: Count = 2  # timed runs; the fastest counts
    out: Folder = "runs/compare_estimators"  # folder for peers.csv
    only: str | None = None  # measure one library in this process; used by the benchmark itself


WAYS, SHOTS, QUERIES = 5, 5, 15
OURS: dict[str, mtl.metagrad.AbstractEstimator] = {
    "mtl, rematerialised": mtl.Rematerialised(),
    "mtl, rematerialised, all kept": mtl.Rematerialised(budget=float("inf")),
    "mtl, rematerialised, finite difference": mtl.Rematerialised("finite-difference"),
    "mtl, windowed(5), adaptive": mtl.Windowed(),
    "mtl, windowed(5), finite difference": mtl.Windowed(pull="finite-difference"),
    "mtl, windowed(5), lazy": mtl.Windowed(mode="lazy"),
    "mtl, first-order": mtl.FirstOrder(),
}


class Adapted(nn.Module):
    """What the inner loop moves, as a module, which is what the other libraries ask for."""

    def __init__(self, backbone: mtl.Backbone, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.frozen = [backbone]  # in a list: no submodule, so that nobody copies the frozen weights
        identity = torch.ones(1, backbone.modulation_width, device=images.device)
        self.scale, self.shift = nn.Parameter(identity), nn.Parameter(torch.zeros_like(identity))
        with torch.no_grad():
            self.head = nn.Parameter(mtl.Cosine().init(backbone(images), labels, WAYS)["weight"])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return loss_of(self.frozen[0], {"scale": self.scale, "shift": self.shift, "head": self.head}, images, labels)


def loss_of(backbone: mtl.Backbone, weights: dict[str, Tensor], images: Any, labels: Tensor) -> Tensor:
    features = backbone(images, mtl.networks.Modulation(weights["scale"], weights["shift"]))
    logits = mtl.Cosine().logits(features, {"weight": weights["head"]}, (features[:, :0], labels), WAYS)
    return nn.functional.cross_entropy(logits[0], labels[0])


def plain(model: Adapted, support: Any, query: Any, k: int, lr: float) -> list[Tensor]:
    start = list(model.parameters())
    names, weights = [n for n, _ in model.named_parameters()], start
    for _ in range(k):
        loss = loss_of(model.frozen[0], dict(zip(names, weights, strict=True)), *support)
        weights = [
            w - lr * g for w, g in zip(weights, torch.autograd.grad(loss, weights, create_graph=True), strict=True)
        ]
    loss = loss_of(model.frozen[0], dict(zip(names, weights, strict=True)), *query)
    return list(torch.autograd.grad(loss, start))


def with_higher(model: Adapted, support: Any, query: Any, k: int, lr: float) -> list[Tensor]:
    import higher  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (adapted, differentiable):
        for _ in range(k):
            differentiable.step(adapted(*support))
        return list(torch.autograd.grad(adapted(*query), list(model.parameters())))


def with_torchopt(model: Adapted, support: Any, query: Any, k: int, lr: float) -> list[Tensor]:
    import torchopt  # pyright: ignore[reportMissingImports]

    start = list(model.parameters())
    optimizer = torchopt.MetaSGD(model, lr=lr)
    for _ in range(k):
        optimizer.step(model(*support))
    return list(torch.autograd.grad(model(*query), start))


PEERS = {"plain PyTorch, unrolled": plain, "higher": with_higher, "torchopt": with_torchopt}


def with_mtl(
    estimator: mtl.metagrad.AbstractEstimator, model: Adapted, support: Any, query: Any, k: int, lr: float
) -> list[Tensor]:
    backbone, (images, labels) = model.frozen[0], support
    seen = backbone.prepare(images)
    problem = mtl.InnerProblem(
        init=lambda meta: meta,
        inner_loss=lambda w, meta, step: loss_of(backbone, w, seen, labels)[None],
        outer_loss=lambda w, meta: loss_of(backbone, w, *query)[None],
        num_steps=k,
        optimizer=mtl.InnerSGD(lr),
    )
    grads = estimator(problem, {n: p.detach() for n, p in model.named_parameters()}).grads
    return [grads[n] for n, _ in model.named_parameters()]


def measure_here(name: str, config: Config) -> list[dict[str, Any]]:
    """Seconds, MiB and the gradient of one library, in this process, for each K."""
    torch.set_num_threads(1)
    device = device_of(config.device)
    backbone = network(config, device)
    rows = []
    for k in config.inner_steps:
        task = task_of(backbone, config)
        grads, cost = measure(
            lambda k=k, task=task: solve(name, *task, k, config.step_size), config.repeats, live=False
        )
        rows.append({"library": name, "K": k, "seconds": cost.seconds, "MiB": cost.peak_mib})
        torch.save(torch.cat([g.detach().flatten().cpu() for g in grads]), Path(config.out) / f"{name}-{k}.pt")
    return rows


Task = tuple[Adapted, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def network(config: Config, device: torch.device) -> mtl.Backbone:
    """The frozen network with random weights, made where it is used: a CPU takes long over a large one."""
    options: dict[str, Any] = {"img_size": config.image_size, "depth": config.depth, "sites": "ssf"}
    with device:
        return mtl.load_backbone(config.backbone, pretrained=False, **options)


def task_of(backbone: mtl.Backbone, config: Config) -> Task:
    """What is adapted, and support and query examples; the same ones every time."""
    torch.manual_seed(0)
    device, size = backbone.device, config.image_size
    labels = lambda n: torch.arange(WAYS, device=device).repeat(n)[None]  # noqa: E731
    support = torch.randn(1, WAYS * SHOTS, 3, size, size).to(device), labels(SHOTS)
    query = torch.randn(1, WAYS * QUERIES, 3, size, size).to(device), labels(QUERIES)
    return Adapted(backbone, *support), support, query


def solve(name: str, model: Adapted, support: Any, query: Any, k: int, lr: float) -> list[Tensor]:
    """The meta-gradient by one library or estimator."""
    if name in PEERS:  # fused attention has no second derivative; ours looks after itself
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return PEERS[name](model, support, query, k, lr)
    return with_mtl(OURS[name], model, support, query, k, lr)


def measure_apart(name: str, k: int, config: Config) -> dict[str, Any]:
    """In a process of its own, whose memory can be read; an accelerator's can be read here.

    Raises:
        RuntimeError, ImportError: its last line, where it could not be measured.
    """
    if device_of(config.device).type == "cuda":
        try:
            return measure_here(name, replace(config, inner_steps=(k,)))[0]
        except torch.OutOfMemoryError as error:
            raise RuntimeError(str(error).split(".")[0]) from None
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    settings = asdict(replace(config, inner_steps=(k,), only=name))
    done = subprocess.run([sys.executable, __file__, *options(settings)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])[0]


def options(settings: dict[str, Any]) -> list[str]:
    """The settings as words of a command line."""
    words = ((f"--{k.replace('_', '-')}", *map(str, v if isinstance(v, tuple) else [v])) for k, v in settings.items())
    return [word for pair in words for word in pair]


def main(config: Config) -> list[dict[str, Any]]:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if config.only:
        rows = measure_here(config.only, config)
        print(json.dumps(rows))
        return rows
    rows: list[dict[str, Any]] = []
    print(f"{'K':>3} {'library':39} {'seconds':>8} {'time':>6} {'MiB':>8} {'cosine':>8} {'largest error':>14}")
    for k in config.inner_steps:
        for name in [*PEERS, *OURS]:
            try:
                row = measure_apart(name, k, config)
            except (RuntimeError, ImportError) as error:
                print(f"{k:>3} {name:39} not measured: {error}", flush=True)
                continue
            rows.append(row | against(rows, row, out))
            print("{K:>3} {library:39} {seconds:8.2f} {time:6.2f} {MiB:8.0f}".format(**rows[-1]), end=" ")
            print("{cosine:8.4f} {error:14.1e}".format(**rows[-1]), flush=True)
    write_csv(rows, out / "peers.csv")
    return rows


def against(rows: list[dict[str, Any]], row: dict[str, Any], out: Path) -> dict[str, float]:
    """Time relative to plain PyTorch at the same K, and how far the gradients differ."""
    first = next(iter(PEERS))
    unit = next((r["seconds"] for r in rows if (r["library"], r["K"]) == (first, row["K"])), row["seconds"])
    found, exact = (torch.load(out / f"{n}-{row['K']}.pt") for n in (row["library"], first))
    error = float((found - exact).abs().max() / exact.abs().max())
    return {"time": row["seconds"] / unit, "cosine": float(torch.cosine_similarity(found, exact, 0)), "error": error}


if __name__ == "__main__":
    answer(main, Config)
