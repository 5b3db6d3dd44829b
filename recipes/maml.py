"""MAML over all weights of the four-convolution network, once with every estimator: accuracy, seconds and memory.

    python recipes/maml.py                                              # embedded letters, 5-way 1-shot, offline
    python recipes/maml.py --ways 20 --shots 5 --out runs/maml-20-5
    python recipes/maml.py --inner-momentum 0.9 --learned-sizes layer
    python recipes/maml.py --data characters/ --out runs/mine           # your own images, a folder per class

A quarter of an hour by default on one idle core. Every estimator trains from the same start on the same episodes and is
judged on the same test episodes twice: after equally many outer steps, and after the seconds that the exact gradient
took for them. Stopped at any moment, the same command goes on from the last point of the curve; maml.md and maml.csv
hold what is finished. Expect 68 % of the exact gradient, 79 % of lazy windows in the same time; docs/maml.md says why.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from helpers import maml_results
from torch import Tensor, nn

import mtl
from mtl.cli.answers import answer, keeping
from mtl.cli.options import Checked, Count, Device, Folder, Positive, Seed, TwoOrMore, complaints_of
from mtl.cli.training.reading import told
from mtl.metagrad import InnerOptions
from mtl.metagrad.tensors import Tensors
from mtl.tools.memory import LiveBytes
from mtl.tools.progress import ProgressBar


@dataclass(frozen=True)
class Config(Checked):
    data: str | None = None  # class folders, csv, parquet or hub id of images; the embedded letters when not given
    ways: TwoOrMore = 5  # classes per task
    shots: Count = 1  # support examples per class
    queries: Count = 5  # query examples per class
    inner_steps: Count = 5  # inner steps per task, K
    inner_lr: Positive = 0.1  # inner step size, or where learned step sizes start
    learned_sizes: Literal["none", "layer", "weight"] = "none"  # step sizes to learn (MAML++, Meta-SGD)
    window: Count = 5  # inner steps that share a linearisation, in windowed methods
    filters: Count = 64  # filters of each convolution
    tasks: Count = 4  # tasks per outer step
    steps: Count = 200  # outer steps
    outer_lr: Positive = 1e-3  # step size of Adam; ten times that for logarithms of inner step sizes
    methods: tuple[str, ...] = ()  # first words of methods to run, such as lazy Reptile; all when empty, exact always
    part: Literal["test", "val"] = "test"  # classes that the table is measured on; use val while you choose settings
    test_tasks: Count = 300  # test tasks per method; papers use 600
    validation_tasks: Count = 40  # validation tasks for each point of a curve
    points: Count = 8  # points of each learning curve
    device: Device = "cpu"  # cpu or cuda; seconds are processor time on a CPU and wall-clock time on a GPU
    threads: Count = 1  # CPU threads
    seed: Seed = 0  # seed of the initial weights and the episodes
    out: Folder = "runs/maml"  # output folder
    # optimiser of the inner loop
    inner: Annotated[InnerOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=InnerOptions)

    def contradictions(self) -> Iterator[str]:
        yield from complaints_of(self.inner.build)
        if self.window > self.inner_steps:
            yield f"--window {self.window}: expected at most --inner-steps {self.inner_steps}"
            return
        names = all_methods(self)
        for first in self.methods:
            if not any(name.startswith(first) for name in names):
                yield f"--methods {first}: expected first words of some of {'; '.join(names)}"


EXACT = "exact"  # the name of the method that the others are compared with
LOG = "log_lr."  # before the name of a weight: the logarithm of its step size


@dataclass(frozen=True)
class Method:
    """An estimator and the problem that it is given.

    Args:
        coarse: inner steps taken as one, of so many times the size: what lazy windows have to beat.
        joint: the inner loop sees the query examples too, for a method that has no outer loss.
        trained: otherwise only its costs are measured.
    """

    estimator: mtl.metagrad.AbstractEstimator
    coarse: int = 1
    joint: bool = False
    trained: bool = True


def methods_of(config: Config) -> dict[str, Method]:
    """Those that are asked for, and the exact one."""
    found = all_methods(config)
    return {k: m for k, m in found.items() if k == EXACT or not config.methods or k.startswith(config.methods)}


def all_methods(config: Config) -> dict[str, Method]:
    w = config.window
    return {
        EXACT: Method(mtl.Rematerialised()),
        "unrolled, exact": Method(mtl.Exact(), trained=False),
        f"adaptive windows of {w}": Method(mtl.Windowed(w)),
        f"exact-forward windows of {w}": Method(mtl.Windowed(w, "exact-forward")),
        f"linear windows of {w}": Method(mtl.Windowed(w, "exact-forward", rank_one=False)),
        f"lazy windows of {w}": Method(mtl.Windowed(w, "lazy")),
        f"control: exact, K/{w} steps of {w} times the size": Method(mtl.Rematerialised(), coarse=w),
        "truncated, last 2 steps": Method(mtl.metagrad.Truncated(2)),
        "binomial, order 1": Method(mtl.metagrad.Binomial(1)),
        "first-order": Method(mtl.FirstOrder()),
        "Reptile": Method(mtl.metagrad.Reptile(), joint=True),
    }


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    learner = Learner(config)
    with keeping(f"finished methods and the last point of each curve are in {config.out}: the same command goes on"):
        return compare(learner, config)


def compare(learner: Learner, config: Config) -> list[dict[str, Any]]:
    """All methods, one after the other."""
    out = Path(config.out)
    said = settings_of(config)
    results, rows = {}, []
    for name, method in methods_of(config).items():
        found = maml_results.load(out, name, said)
        if found is None:
            found = train(learner, name, method, results.get(EXACT)) if method.trained else {}
            found["costs"] = costs(learner, method, (found if name == EXACT else results[EXACT])["weights"])
            maml_results.save(out, name, found | {"config": said})
        results[name] = found
        rows = maml_results.write(results, EXACT, out)
    maml_results.draw(results, EXACT, out / "maml.png")
    print((out / "maml.md").read_text())
    return rows


class Learner:
    """The network, its tasks and the inner problem."""

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.network = mtl.metagrad.Functional(conv4(config.ways, config.filters).to(config.device))
        self.tasks = {part: tasks_of(config, part) for part in ("train", "val", "test")}

    def start(self) -> Tensors:
        """Initial weights, the same for all methods, and the logarithms of step sizes when they are learned."""
        weights, kind = self.network.weights(), self.config.learned_sizes
        size = torch.tensor(self.config.inner_lr, device=self.config.device).log()
        shapes = {k: v.shape if kind == "weight" else (1,) for k, v in weights.items()} if kind != "none" else {}
        return weights | {LOG + k: size.expand(shape).clone() for k, shape in shapes.items()}

    def batch(self, part: str, first: int, number: int) -> mtl.Episode:
        [(_, episode)] = mtl.stack_by_shape([self.tasks[part].sample(i) for i in range(first, first + number)])
        return episode.to(self.config.device)

    def problem(self, episode: mtl.Episode, coarse: int = 1, joint: bool = False) -> mtl.InnerProblem:
        """MAML: all weights are adapted, from initial ones that all tasks share."""
        support, query = pair(episode.support), pair(episode.query)
        if joint:
            support = torch.cat([support[0], query[0]], 1), torch.cat([support[1], query[1]], 1)

        def loss(weights: Tensors, inputs: Tensor, labels: Tensor) -> Tensor:
            logits = self.network(weights, inputs)
            return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

        def sizes(meta: Tensors) -> float | Tensors:
            learned = {k.removeprefix(LOG): coarse * v.exp() for k, v in meta.items() if k.startswith(LOG)}
            return learned or coarse * self.config.inner_lr

        return mtl.InnerProblem(
            init=lambda m: {k: v.expand(episode.tasks, *v.shape[1:]) for k, v in m.items() if not k.startswith(LOG)},
            inner_loss=lambda weights, meta, step: loss(weights, *support),
            outer_loss=lambda weights, meta: loss(weights, *query),
            num_steps=self.config.inner_steps // coarse,
            optimizer=self.config.inner.build(sizes),
        )

    def accuracy(self, meta: Tensors, part: str, number: int, coarse: int = 1) -> list[float]:
        """Of each task after adapting to it."""
        found = []
        for first in range(0, number, self.config.tasks):
            episode = self.batch(part, first, min(self.config.tasks, number - first))
            weights = mtl.solve(self.problem(episode, coarse), meta)
            with torch.no_grad():
                hits = self.network(weights, episode.query.inputs.tensor).argmax(2) == episode.query.labels
            found += hits.float().mean(1).tolist()
        return found


def pair(examples: mtl.Examples) -> tuple[Tensor, Tensor]:
    return examples.inputs.tensor, examples.labels


def conv4(ways: int, filters: int) -> nn.Module:
    """The network of the MAML paper for 28-pixel grey images: strided convolutions, batch statistics at all times."""
    layers: list[nn.Module] = []
    for channels in (1, *[filters] * 3):
        # No bias: batch normalisation takes it out again, and Adam would walk along its rounding errors.
        convolution = nn.Conv2d(channels, filters, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, ways))


def tasks_of(config: Config, part: Any) -> mtl.TaskSource:
    sizes: dict[str, Any] = {k: getattr(config, k) for k in ("ways", "shots", "queries", "seed")}
    if config.data is None:
        return mtl.data.CharacterTasks(part, **sizes)
    images = mtl.open_images(config.data, mode="L")
    told(images.notes)
    split = mtl.data.load_or_make_split(
        Path(config.out) / "split.json", images.class_names, given=images.parts, seed=config.seed, ways=config.ways
    )
    grey = lambda image: torch.from_numpy(np.asarray(image.resize((28, 28)), np.float32))[None] / 127.5 - 1  # noqa: E731
    return mtl.ClassTasks(images, split.parts[part], preprocess=lambda i: torch.stack([*map(grey, i)]), **sizes)


def train(learner: Learner, name: str, method: Method, exact: dict[str, Any] | None) -> dict[str, Any]:
    """Adam on the meta-gradient until the steps and the seconds of the exact method are reached; judged at both."""
    config, meta = learner.config, learner.start()
    kinds = [[v for k, v in meta.items() if k.startswith(LOG) == sizes] for sizes in (False, True)]
    adam = torch.optim.Adam([{"params": kinds[0]}, {"params": kinds[1], "lr": 10 * config.outer_lr}], config.outer_lr)
    found: dict[str, Any] = {"curve": [], "weights": {}}
    every = max(1, config.steps // config.points)
    clock, spent, step = clock_of(config), 0.0, 0
    if (left := maml_results.load_unfinished(Path(config.out), name, settings_of(config))) is not None:
        found, spent, step = left["found"], left["spent"], left["step"]
        adam.load_state_dict(left["adam"])
        for k, v in meta.items():
            v.copy_(left["meta"][k])
    with ProgressBar(desc=name, unit="step", initial=step) as bar:
        while len(found["weights"]) < 2:
            episode = learner.batch("train", step * config.tasks, config.tasks)
            begin = clock()
            result = method.estimator(learner.problem(episode, method.coarse, method.joint), meta)
            for k, v in meta.items():
                v.grad = result.grads[k]
            adam.step()
            loss = float(result.loss)  # waits for the device
            spent, step = spent + clock() - begin, step + 1
            bar.update()
            if step % every == 0:
                right = np.mean(learner.accuracy(meta, "val", config.validation_tasks, method.coarse))
                found["curve"].append((spent, step, float(right)))
                bar.set_postfix_str(f"{spent:.0f} s, loss {loss:.3f}, validation {100 * right:.1f} %")
            enough = {"equal steps": step >= config.steps}
            enough["equal time"] = enough["equal steps"] if exact is None else spent >= exact["equal steps"]["seconds"]
            for condition in (c for c, reached in enough.items() if reached and c not in found):
                right = learner.accuracy(meta, config.part, config.test_tasks, method.coarse)
                found[condition] = {"step": step, "seconds": spent, "accuracy": right}
                found["weights"][condition] = {k: v.detach().clone() for k, v in meta.items()}
            if step % every == 0:
                state = {"found": found, "spent": spent, "step": step, "adam": adam.state_dict(), "meta": meta}
                maml_results.save_unfinished(Path(config.out), name, state | {"config": settings_of(config)})
    return found


def costs(learner: Learner, method: Method, weights: dict[str, Tensors]) -> dict[str, float]:
    """Of one meta-gradient where the exact method ended, and its cosine to the exact one."""
    episode, meta = learner.batch("train", 0, learner.config.tasks), weights["equal steps"]
    run = lambda m: m.estimator(learner.problem(episode, m.coarse, m.joint), meta)  # noqa: E731
    with LiveBytes() as counter:
        found = run(method)
    exact = run(Method(mtl.Rematerialised()))
    flat = [torch.cat([g.flatten() for g in f.grads.values()]) for f in (found, exact)]
    seconds = min(timeit.repeat(lambda: float(run(method).loss), timer=clock_of(learner.config), number=1, repeat=3))
    cosine = float(torch.cosine_similarity(*flat, dim=0))
    return {"MiB": counter.peak / 2**20, "seconds": seconds, "pulls": found.pulls, "cosine": cosine}


def settings_of(config: Config) -> dict[str, Any]:
    """What a result depends on."""
    return {k: v for k, v in asdict(config).items() if k not in ("methods", "out")}


def clock_of(config: Config) -> Callable[[], float]:
    return time.process_time if config.device == "cpu" else time.perf_counter


if __name__ == "__main__":
    answer(main, Config)
