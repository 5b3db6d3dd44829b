"""Every meta-gradient estimator on one workload: time, peak memory, and agreement with the exact gradient by type.

    python recipes/benchmarks/compare_estimators.py   # a four-block timm ViT and a small BERT
    python recipes/benchmarks/compare_estimators.py --depth 12 --networks vit   # the full vit_tiny
    python recipes/benchmarks/compare_estimators.py --peers   # and higher, torchopt, plain PyTorch
    python recipes/benchmarks/compare_estimators.py --accuracy-seconds 60   # and accuracy at equal wall-clock

Ten minutes by default on one thread. Times are ratios within one run. Scale and shift of every site and a cosine head
are adapted inside; the meta-parameters are of all four types:

    I  scale and shift where the inner loop starts          D  a temperature of the outer loss
    L  a weight per support example, in the inner loss      O  inner step sizes

A cosine of nan is a gradient that is structurally zero. docs/choosing-an-estimator.md reads the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from command import Checked, Count, Counts, Device, Folder, Positive, PositiveOrZero, TwoOrMore, answer
from matplotlib import colormaps
from matplotlib.figure import Figure
from measuring import device_of, measure

import mtl
from mtl.tools.files import atomic_write, write_csv


@dataclass(frozen=True)
class Config(Checked):
    networks: tuple[Literal["vit", "bert"], ...] = ("vit", "bert")  # vit_tiny_patch16_224 at 64 px; a small random BERT
    depth: Count = 4  # number of blocks
    last_k: Count | None = None  # modulate only the last k blocks; blocks below are computed once
    inner_steps: Counts = (5, 10, 20)  # inner steps, K
    curvature: Positive = 0.1  # sets the inner step size: step size times the largest curvature at the start
    ways: TwoOrMore = 5  # classes
    shots: Count = 5  # support examples per class
    queries: Count = 15  # query examples per class
    repeats: Count = 1  # timed runs; the fastest counts
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    peers: bool = False  # measure other libraries too, each in its own process
    accuracy_seconds: PositiveOrZero = 0.0  # train a generator so long with each of a few estimators; 0: do not
    out: Folder = "runs/compare_estimators"  # folder for tables (csv) and pictures (png)


SIZE = 5  # of every window, and of the truncation
TYPES = {"I": ("scale", "shift"), "D": ("temperature",), "L": ("example",), "O": ("log_lr",)}
FD = "finite-difference"
ESTIMATORS: dict[str, mtl.metagrad.AbstractEstimator] = {
    **mtl.metagrad.representatives(SIZE),  # the exact gradient, unrolled, is the first: the others are compared with it
    "rematerialised, 100 MiB kept": mtl.Rematerialised(budget=100),
    "rematerialised, forward-over-reverse": mtl.Rematerialised("forward-over-reverse"),
    "rematerialised, finite difference": mtl.Rematerialised(FD),
    "windowed(5), adaptive, finite difference": mtl.Windowed(SIZE, pull=FD),
    "windowed(5), exact-forward, linear": mtl.Windowed(SIZE, "exact-forward", rank_one=False),
}
CONTROL = "MAML, K / 5 steps, each 5 times as large"


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # the table says it
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for network in config.networks:
        learner, episode = workload(network, config)
        for k in config.inner_steps:
            rows += compare(network, learner, episode, k, config)
    write_csv(rows, out / "estimators.csv")
    draw(rows, out / "estimators.png")
    if config.peers:
        peers = Path(__file__).with_name("compare_peers.py")
        steps = [str(k) for k in config.inner_steps]
        options = ["--depth", str(config.depth), "--out", str(out), "--inner-steps", *steps]
        subprocess.run([sys.executable, str(peers), *options], check=True)
    if config.accuracy_seconds:
        import compare_accuracy

        compare_accuracy.main(compare_accuracy.Config(seconds=config.accuracy_seconds, out=config.out))
    return rows


def compare(network: str, learner: mtl.MetaLearner, episode: mtl.Episode, k: int, config: Config) -> list[dict]:
    problem, meta = typed_problem(learner, episode, k)
    todo = [(name, e, problem) for name, e in ESTIMATORS.items()]
    todo += [(CONTROL, mtl.Rematerialised(), coarse(problem, learner))] if k % SIZE == 0 else []
    rows, exact, unit = [], {}, 0.0
    print(f"\n{network}, {k} inner steps, alpha * h_max {config.curvature}")
    print(f"{'estimator':42} {'time':>6} {'MiB':>8} {'grads':>5} {'pulls':>5}", *(f"{t:>14}" for t in TYPES))
    for name, estimator, solved in todo:
        result, cost = measure(partial(estimator, solved, meta), config.repeats)
        row: dict[str, Any] = {"seconds": cost.seconds, "MiB": cost.live_mib}
        row |= {"gradients": result.gradients, "pulls": result.pulls}
        found = {t: torch.cat([result.grads[key].flatten() for key in keys]) for t, keys in TYPES.items()}
        exact, unit = (exact, unit) if exact else (found, row["seconds"])
        row |= {"network": network, "K": k, "estimator": name, "time": row["seconds"] / unit}
        for t, reference in exact.items():
            both = found[t].norm() * reference.norm()
            row[f"cosine {t}"] = float(found[t] @ reference / both) if both else float("nan")
            row[f"norm {t}"] = float(found[t].norm() / reference.norm())
        rows.append(row)
        agreement = (f"{row[f'cosine {t}']:7.4f} ({row[f'norm {t}']:4.2f})" for t in TYPES)
        print("{estimator:42} {time:6.2f} {MiB:8.1f} {gradients:5} {pulls:5}".format(**row), *agreement, flush=True)
    return rows


def workload(network: str, config: Config) -> tuple[mtl.MetaLearner, mtl.Episode]:
    torch.manual_seed(0)
    sites: Any = {"sites": "ssf", "last_k": config.last_k, "pretrained": False}
    if network == "vit":
        backbone = mtl.load_backbone("vit_tiny_patch16_224", img_size=64, depth=config.depth, **sites)
        draw = lambda n: torch.randn(1, n, 3, 64, 64)  # noqa: E731
    else:
        folder = Path(config.out) / "bert"
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "vocab_size": 1000}
        facts = {"model_type": "bert", "num_hidden_layers": config.depth, **sizes}
        (folder / "config.json").write_text(json.dumps(facts))
        backbone = mtl.load_backbone(str(folder), **sites)
        draw = lambda n: {"input_ids": torch.randint(1000, (1, n, 16))}  # noqa: E731
    examples = lambda n: mtl.Examples(draw(config.ways * n), torch.arange(config.ways).repeat(n)[None])  # noqa: E731
    device = device_of(config.device)
    episode = mtl.Episode(examples(config.shots), examples(config.queries), config.ways).to(device)
    of = lambda size: mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width, size)).to(device)  # noqa: E731
    largest = float(mtl.metagrad.curvature(*typed_problem(of(1e-3), episode, 1)).max()) / 1e-3
    return of(config.curvature / largest), episode


def typed_problem(learner: mtl.MetaLearner, episode: mtl.Episode, k: int) -> tuple[mtl.InnerProblem, dict]:
    """The learner's problem, with a meta-parameter that acts only in the inner loss and one only in the outer loss."""
    support, query, ways = episode.support, episode.query, episode.ways
    seen, asked = learner.backbone.prepare(support.inputs), query.inputs
    emitted = {n: v.detach().clone() for n, v in learner.generator(learner.view(support)).items()}
    device = support.labels.device
    meta = emitted | {
        "example": torch.zeros(support.labels.shape[1], device=device),
        "temperature": torch.zeros(1, device=device),
    }

    def inner_loss(weights, meta, step):
        logits = learner.model.support_logits(seen, support.labels, ways, weights, meta)
        losses = F.cross_entropy(logits.flatten(0, 1), support.labels.flatten(), reduction="none")
        return (losses.view_as(support.labels) * meta["example"].exp()).mean(1)

    def outer_loss(weights, meta):
        logits = learner.model.query_logits(seen, support.labels, ways, asked, weights, meta)
        logits = logits * meta["temperature"].exp()
        return F.cross_entropy(logits.flatten(0, 1), query.labels.flatten(), reduction="none").view(1, -1).mean(1)

    base = learner.problem(episode)
    return replace(base, inner_loss=inner_loss, outer_loss=outer_loss, num_steps=k), meta


def coarse(problem: mtl.InnerProblem, learner: mtl.MetaLearner) -> mtl.InnerProblem:
    """Fewer, larger steps: what lazy windows have to beat."""
    large = mtl.InnerSGD(lambda m: {k: SIZE * v for k, v in learner.model.step_sizes(m).items()})
    return replace(problem, num_steps=problem.num_steps // SIZE, optimizer=large)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against the worst cosine of the types that an estimator trains; the size of a point is its memory."""
    panels = list(dict.fromkeys((r["network"], r["K"]) for r in rows))
    names = list(dict.fromkeys(r["estimator"] for r in rows))
    figure = Figure((5 * len(panels), 6), layout="constrained")
    for panel, (network, k) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for r in (r for r in rows if (r["network"], r["K"]) == (network, k)):
            worst = min(c for t in TYPES if (c := r[f"cosine {t}"]) == c)
            colour = [colormaps["tab20"](names.index(r["estimator"]) % 20)]
            panel.scatter(r["time"], worst, 2 * r["MiB"], colour, label=r["estimator"], alpha=0.7)
        panel.set(title=f"{network}, {k} inner steps", xlabel="time, unrolled = 1", ylabel="worst cosine to exact")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, markerscale=0.3)
    with atomic_write(path) as draft:
        figure.savefig(draft)


if __name__ == "__main__":
    answer(main, Config)
