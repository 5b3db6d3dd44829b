"""A user's own module through other libraries and through ours: seconds and memory of one meta-gradient.

    pip install -e ".[bench]"
    python recipes/benchmarks/compare_peers.py
    python recipes/benchmarks/compare_peers.py --modules vit bert --inner-steps 5 20 --repeats 3

The module is one that knows nothing of this toolkit: a frozen transformer of timm or transformers with scales and
shifts after its norms and linear layers and a linear head, called through `torch.func.functional_call`. 5-way 5-shot
with 75 queries, plain gradient descent on scales, shifts and head, one task, one thread. Every way runs in a process of
its own, which builds the same problem from the same seed; its gradient is compared with plain PyTorch's. MiB is the
most resident memory above what the process had before, relative to the plain first-order gradient. That gradient is
also each process's clock, timed in turn with its own: a way's time is counted in first-order gradients beside it, and
given relative to the unrolled gradient's, so that a machine that grows slower in between does not count. With both
modules and two lengths of the loop three quarters of an hour.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from command import Checked, Count, Counts, Device, Folder, Positive, answer
from measuring import device_of, measure, timed
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import mtl
from mtl.tools.files import write_csv

Module = Literal["vit", "bert"]


@dataclass(frozen=True)
class Config(Checked):
    modules: tuple[Module, ...] = ("vit",)  # whose own module: one with convolutional patches, or with words
    backbone: str = "vit_tiny_patch16_224"  # the vit, by its name in timm; random weights
    depth: Count = 12  # number of blocks of either
    inner_steps: Counts = (5, 20)  # inner steps, K
    step_size: Positive = 0.002  # step size of the inner loop
    image_size: Count = 64  # width and height of images, in pixels
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    repeats: Count = 2  # timed runs of a way and of the clock, in turn; the fastest way, and the median of their ratios
    out: Folder = "runs/compare_estimators"  # folder for peers.csv
    only: str | None = None  # measure one way in this process; used by the benchmark itself


WAYS, SHOTS, QUERIES, WORDS, VOCABULARY = 5, 5, 15, 24, 1000
OURS: dict[str, mtl.metagrad.AbstractEstimator] = {
    "mtl, exact": mtl.Exact(),
    "mtl, rematerialised": mtl.Rematerialised(),
    "mtl, rematerialised, all kept": mtl.Rematerialised(budget=float("inf")),
    "mtl, rematerialised, auto": mtl.Rematerialised("auto"),
    "mtl, rematerialised, finite difference": mtl.Rematerialised("finite-difference"),
    "mtl, windowed(5), adaptive": mtl.Windowed(),
    "mtl, windowed(5), finite difference": mtl.Windowed(pull="finite-difference"),
    "mtl, windowed(5), one-sided difference": mtl.Windowed(pull="one-sided-difference"),
    "mtl, windowed(5), auto": mtl.Windowed(pull="auto"),
    "mtl, windowed(5), fixed": mtl.Windowed(mode="exact-forward"),
    "mtl, windowed(5), fixed, one-sided difference": mtl.Windowed(mode="exact-forward", pull="one-sided-difference"),
    "mtl, windowed(5), lazy": mtl.Windowed(mode="lazy"),
    "mtl, windowed(5), lazy, one-sided difference": mtl.Windowed(mode="lazy", pull="one-sided-difference"),
    "mtl, first-order": mtl.FirstOrder(),
}


# --- the user's module ---


class ScaledAndShifted(nn.Module):
    """A frozen layer, and a trainable scale and shift of what it returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        size = int(next(layer.parameters()).shape[0])  # norms and linear layers alike: their outputs
        self.scale, self.shift = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * self.scale + self.shift


class Modulated(nn.Module):
    """A frozen network with a trainable scale and shift after some of its layers, and a linear head.

    Args:
        layers: names of the layers to modulate.
        features: what the network makes of its inputs, ``(n, width)``.
    """

    def __init__(
        self, network: nn.Module, layers: list[str], width: int, features: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.network, self._features = network.requires_grad_(False).eval(), features
        for name in layers:
            network.set_submodule(name, ScaledAndShifted(network.get_submodule(name)))
        self.head = nn.Linear(width, WAYS)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self._features(self.network, inputs))


def vit(config: Config) -> Modulated:
    import timm

    options: dict[str, Any] = {"img_size": config.image_size, "depth": config.depth, "num_classes": 0}
    network = timm.create_model(config.backbone, **options)
    inside = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = [f"blocks.{i}.{name}" for i in range(config.depth) for name in inside]
    return Modulated(
        network, [*layers, "norm"], network.get_parameter("norm.weight").numel(), lambda network, x: network(x)
    )


def bert(config: Config) -> Modulated:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    described = transformers.BertConfig(num_hidden_layers=config.depth, vocab_size=VOCABULARY, **sizes)
    network = transformers.BertModel(described, add_pooling_layer=False)
    inside = (
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    layers = [f"encoder.layer.{i}.{name}" for i in range(config.depth) for name in inside]
    return Modulated(network, layers, 192, lambda network, x: network(x).last_hidden_state[:, 0])


def inputs_of(module: Module, n: int, config: Config) -> Tensor:
    if module == "bert":
        return torch.randint(VOCABULARY, (n, WORDS))
    return torch.randn(n, 3, config.image_size, config.image_size)


Examples = tuple[Tensor, Tensor]
Task = tuple[Modulated, Examples, Examples]


def task_of(module: Module, config: Config) -> Task:
    """The module, and support and query examples; the same ones every time."""
    torch.manual_seed(0)
    device = device_of(config.device)
    with device:  # random weights of a large network take long on a CPU
        model = {"vit": vit, "bert": bert}[module](config).to(device)
    torch.manual_seed(1)
    examples = lambda n: (  # noqa: E731
        inputs_of(module, WAYS * n, config).to(device),
        torch.arange(WAYS, device=device).repeat(n),
    )
    return model, examples(SHOTS), examples(QUERIES)


# --- ways to its meta-gradient ---


def fast_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def loss_of(model: nn.Module, weights: dict[str, Tensor], examples: Examples) -> Tensor:
    inputs, labels = examples
    return nn.functional.cross_entropy(functional_call(model, weights, (inputs,)), labels)


def plain(model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    start = fast_weights(model)
    weights = start
    for _ in range(k):
        loss = loss_of(model, weights, support)
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), found, strict=True)}
    return list(torch.autograd.grad(loss_of(model, weights, query), list(start.values())))


def with_checkpoints(model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    start = {name: p.detach().requires_grad_() for name, p in fast_weights(model).items()}

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        again = torch.is_grad_enabled()  # the second time, on the way back
        with torch.enable_grad():
            values = values if again else tuple(v.detach().requires_grad_() for v in values)
            loss = loss_of(model, dict(zip(start, values, strict=True)), support)
            found = torch.autograd.grad(loss, values, create_graph=again)
        return tuple(w - lr * g for w, g in zip(values, found, strict=True))

    values: Any = tuple(start.values())
    for _ in range(k):
        values = checkpoint(step, *values, use_reentrant=True)
    loss_of(model, dict(zip(start, values, strict=True)), query).backward()
    return [p.grad for p in start.values() if p.grad is not None]


def plain_first_order(model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    weights = {name: p.detach().requires_grad_() for name, p in fast_weights(model).items()}
    for _ in range(k):
        found = torch.autograd.grad(loss_of(model, weights, support), list(weights.values()))
        with torch.no_grad():
            weights = {n: (w - lr * g).requires_grad_() for (n, w), g in zip(weights.items(), found, strict=True)}
    return list(torch.autograd.grad(loss_of(model, weights, query), list(weights.values())))


def with_higher(model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    import higher  # pyright: ignore[reportMissingImports]

    start = list(fast_weights(model).values())
    loss = lambda adapted, examples: nn.functional.cross_entropy(adapted(examples[0]), examples[1])  # noqa: E731
    optimizer = torch.optim.SGD(start, lr=lr)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (adapted, differentiable):
        for _ in range(k):
            differentiable.step(loss(adapted, support))
        return list(torch.autograd.grad(loss(adapted, query), start))


def with_torchopt(model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    import torchopt  # pyright: ignore[reportMissingImports]

    start = fast_weights(model)
    weights, optimizer = start, torchopt.sgd(lr)
    state = optimizer.init(weights)
    for _ in range(k):
        loss = loss_of(model, weights, support)
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        updates, state = optimizer.update(dict(zip(weights, found, strict=True)), state, inplace=False)
        weights = torchopt.apply_updates(weights, updates, inplace=False)
    return list(torch.autograd.grad(loss_of(model, weights, query), list(start.values())))


PEERS = {
    "plain PyTorch, unrolled": plain,
    "plain PyTorch, reentrant checkpoint per step": with_checkpoints,
    "plain PyTorch, first-order": plain_first_order,
    "higher": with_higher,
    "torchopt": with_torchopt,
}


def with_mtl(
    estimator: mtl.metagrad.AbstractEstimator, model: Modulated, support: Examples, query: Examples, k: int, lr: float
) -> list[Tensor]:
    of_task = lambda weights: {name: w[0] for name, w in weights.items()}  # noqa: E731
    problem = mtl.InnerProblem(
        init=lambda meta: {name: v[None] for name, v in meta.items()},
        inner_loss=lambda weights, meta, step: loss_of(model, of_task(weights), support)[None],
        outer_loss=lambda weights, meta: loss_of(model, of_task(weights), query)[None],
        num_steps=k,
        optimizer=mtl.InnerSGD(lr),
    )
    return list(estimator(problem, {name: p.detach() for name, p in fast_weights(model).items()}).grads.values())


def solve(name: str, model: Modulated, support: Examples, query: Examples, k: int, lr: float) -> list[Tensor]:
    """The meta-gradient by one library or estimator."""
    if name in PEERS:  # fused attention has no second derivative; ours looks after itself
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return PEERS[name](model, support, query, k, lr)
    return with_mtl(OURS[name], model, support, query, k, lr)


# --- the comparison ---

UNROLLED, CLOCK = "plain PyTorch, unrolled", "plain PyTorch, first-order"


def measure_here(name: str, module: Module, config: Config) -> list[dict[str, Any]]:
    """Seconds, MiB and the gradient of one way, in this process, for each K."""
    torch.set_num_threads(1)
    task, rows = task_of(module, config), []
    for k in config.inner_steps:
        way, clock = (lambda k=k, n=n: solve(n, *task, k, config.step_size) for n in (name, CLOCK))
        grads, cost = measure(way, live=False)  # memory, before the clock needs any
        seconds = [(timed(way)[0], timed(clock)[0]) for _ in range(config.repeats)]
        fastest, clocks = min(way for way, _ in seconds), median(way / clock for way, clock in seconds)
        row = {"module": module, "library": name, "K": k, "seconds": fastest, "clocks": clocks}
        rows.append(row | {"MiB": cost.peak_mib})
        gradient = torch.cat([g.detach().flatten().cpu() for g in grads])
        torch.save(gradient, Path(config.out) / f"{module}-{name}-{k}.pt")
    return rows


def measure_apart(name: str, module: Module, k: int, config: Config) -> dict[str, Any]:
    """In a process of its own, whose memory can be read; an accelerator's can be read here.

    Raises:
        RuntimeError, ImportError: its last line, where it could not be measured.
    """
    config = replace(config, inner_steps=(k,), modules=(module,))
    if device_of(config.device).type == "cuda":
        try:
            return measure_here(name, module, config)[0]
        except torch.OutOfMemoryError as error:
            raise RuntimeError(str(error).split(".")[0]) from None
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    settings = asdict(replace(config, only=name))
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
        rows = measure_here(config.only, config.modules[0], config)
        print(json.dumps(rows))
        return rows
    rows: list[dict[str, Any]] = []
    print(
        f"{'':4} {'K':>3} {'library':46} {'seconds':>8} {'time':>6} {'MiB':>8} {'memory':>6} {'cosine':>8} {'error':>8}"
    )
    for module in config.modules:
        for k in config.inner_steps:
            for name in [*PEERS, *OURS]:
                try:
                    row = measure_apart(name, module, k, config)
                except (RuntimeError, ImportError) as error:
                    print(f"{module:4} {k:>3} {name:46} not measured: {error}", flush=True)
                    continue
                rows.append(row | against(rows, row, out))
                print(
                    "{module:4} {K:>3} {library:46} {seconds:8.2f} {time:6.2f} {MiB:8.0f}".format(**rows[-1]), end=" "
                )
                print("{memory:6.2f} {cosine:8.4f} {error:8.1e}".format(**rows[-1]), flush=True)
    write_csv(rows, out / "peers.csv")
    return rows


def against(rows: list[dict[str, Any]], row: dict[str, Any], out: Path) -> dict[str, float]:
    """Beside plain PyTorch at the same K: time to the unrolled gradient's, memory to the first-order one's, error."""
    module, k = row["module"], row["K"]
    beside = {r["library"]: r for r in [*rows, row] if (r["module"], r["K"]) == (module, k)}
    found, exact = (torch.load(out / f"{module}-{name}-{k}.pt") for name in (row["library"], UNROLLED))
    return {
        "time": row["clocks"] / beside[UNROLLED]["clocks"],
        "memory": row["MiB"] / beside[CLOCK]["MiB"] if beside.get(CLOCK, {}).get("MiB") else float("nan"),
        "cosine": float(torch.cosine_similarity(found, exact, 0)),
        "error": float((found - exact).abs().max() / exact.abs().max()),
    }


if __name__ == "__main__":
    answer(main, Config)
