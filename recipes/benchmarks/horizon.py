"""What a long horizon buys: the same parameters of an inner loop, learned through one step, some, windows, all of them.

    python recipes/benchmarks/horizon.py --backbone mtl/efficientnet-lite0 --img-size 96 --images fashion/ signs/ \
        --label-columns class fashion:baseColour --hold-out-families fashion.baseColour --inner-steps 50 --shots 20
    python recipes/benchmarks/horizon.py --quick --texts clinc150.jsonl.gz --backbone mtl/minilm   # minutes
    python recipes/benchmarks/horizon.py ... --each   # and each kind of parameter alone: which need the horizon?

Two loops on readouts, for which every example passes through the network once (--cache-dir): a softmax head whose step
sizes are learned feature by feature, and the levels of :class:`mtl.fewshot.Refined`. With --loops sites one inside the
network: scale and shift of its last blocks and a head, with a step size for each channel. Everything is compared on
the same tasks, of new classes and of families never trained on, against the best fixed step size that validation tasks
found. Each training is a file in --out and is not repeated; tables and picture are written at the end. Run one process
at a time for seconds that mean something.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from command import Checked, Count, Counts, Folder, Positive, Positives, answer
from measuring import measure
from torch import Tensor, nn

import mtl
from mtl.metagrad import SAMA, AbstractEstimator, FirstOrder, OneStep, Rematerialised, Truncated, Windowed
from mtl.tools.files import write_whole
from mtl.tools.identity import digest

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers.horizon_report import report
from helpers.long_loops import AbstractPool, Loop, accuracies
from helpers.readout_loops import Head, Levels, Pool
from helpers.readouts import Data, open_network
from helpers.site_loops import Sites, site_pools

FIXED = "fixed"
LOOPS: Mapping[str, Callable[[], Loop[Any]]] = {"head": Head, "levels": Levels, "sites": Sites}
EACH = ("horizon 1", "windows 5", "all steps", "first-order")  # rows of parameters that are learned alone
ON_READOUT = frozenset({"head", "levels"})
FREE = ("out", "rows", "loops", "inner_steps", "seeds", "each", "learn", "quick")  # no training depends on these
Runs = dict[str, Any]


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/horizon"  # output folder; run again with the same one to continue
    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = field(default_factory=Data)
    backbone: str = "mtl/efficientnet-lite0"  # the frozen network
    img_size: Count | None = None  # height and width of images, for a timm network
    loops: tuple[Literal["head", "levels", "sites"], ...] = ("head", "levels")  # which inner loops
    last_k: Count = 1  # blocks of the network that the loop "sites" modulates
    inner_steps: Counts = (5, 20, 50, 200)  # inner steps, K
    rows: tuple[str, ...] = ()  # rows of the table by name; all when empty
    learn: tuple[str, ...] = ("rates", "momentum", "decay")  # what is learned of the loops
    each: bool = False  # also each kind of parameter alone, through one step, windows, all steps, first order
    shots: Count = 20  # examples per class
    queries: Count = 10  # query examples per class
    noise: float = 0.0  # share of wrong labels in the support sets of training and test
    steps: Count = 120  # outer steps
    tasks_per_step: Count = 4  # tasks per outer step
    outer_lr: Positive = 0.03  # learning rate of Adam
    sizes: Positives = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # step sizes to choose the fixed one from
    seeds: Counts = (1, 2, 3)  # of the training episodes
    training_tasks: Count = 240  # different tasks to train on
    validation_tasks: Count = 40  # that choose the fixed step size
    test_tasks: Count = 300  # that everything is compared on
    check_every: Count = 30  # outer steps between two comparisons with the exact gradient
    quick: bool = False  # a few small sizes of everything, to see it work

    def contradictions(self) -> Iterator[str]:
        yield from self.data.unsaid("measure on")
        if not 0 <= self.noise < 1:
            yield f"--noise {self.noise}: expected a share, 0 or more and below 1"
        known = {name for loop in self.loops for name in LOOPS[loop]().learnable}
        if unknown := [name for name in self.learn if name not in known]:
            yield f"--learn {' '.join(unknown)}: expected some of {', '.join(sorted(known))}"
        if unknown := [name for name in self.rows if name not in rows_of(200)]:
            yield f"--rows {unknown[0]!r}: expected some of {', '.join(map(repr, rows_of(200)))}"


QUICK: Runs = {
    "inner_steps": (5, 10), "rows": ("horizon 1", "all steps", "windows 5"), "seeds": (1,), "steps": 4,
    "training_tasks": 8, "validation_tasks": 4, "test_tasks": 12, "check_every": 2, "sizes": (1.0, 10.0),
}  # fmt: skip


def rows_of(steps: int) -> Mapping[str, AbstractEstimator]:
    """The rows of the table, for so many inner steps."""
    horizons = {f"horizon {n}": Truncated(n) for n in (1, 5, 10) if n < steps}
    halves = {"half the steps": Truncated(steps // 2)} if steps > 1 else {}
    windows = {f"windows {n}": Windowed(n, mode="exact-forward") for n in (2, 5, 10) if n <= steps}
    others = {"adaptive": Windowed(10), "first-order": FirstOrder(), "one-step": OneStep(), "SAMA": SAMA()}
    return horizons | halves | {"all steps": Rematerialised()} | windows | others


@dataclass(frozen=True)
class Pools:
    train: AbstractPool
    val: AbstractPool
    test: AbstractPool


def main(config: Config) -> list[Runs]:
    if config.quick:
        config = type(config)(**(vars(config) | QUICK))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # the table says it
    divided = config.data.one_kind()
    options: Runs = {} if config.img_size is None else {"img_size": config.img_size}
    sizes = {"train": config.training_tasks, "val": config.validation_tasks, "test": config.test_tasks}
    shared = {"shots": config.shots, "queries": config.queries, "noise": config.noise}
    pools = dict[str, Pools]()
    if set(config.loops) & ON_READOUT:
        network = open_network(config.backbone, config.data, divided, **options)
        own = Pools(**{p: Pool.of(network, p, count=n, **shared) for p, n in sizes.items()})
        pools |= dict.fromkeys(ON_READOUT, own)
    if "sites" in config.loops:
        names = config.backbone, config.last_k, config.data
        pools["sites"] = Pools(**site_pools(*names, divided, sizes=sizes, **shared, **options))
    found = [solve_job(job, pools[job.loop], config) for job in jobs(config)]
    report(found, Path(config.out), f"{config.backbone}, {config.data.ways}-way {config.shots}-shot")
    return found


@dataclass(frozen=True)
class Job:
    """One training: a row of the table, of one loop, number of steps and seed, and what it learns."""

    loop: str
    steps: int
    row: str
    learn: tuple[str, ...]
    seed: int


def jobs(config: Config) -> Iterator[Job]:
    """Seeds in turn, so that a run that is cut short has all rows."""
    for seed in config.seeds:
        for steps in config.inner_steps:
            for loop in config.loops:
                if seed == config.seeds[0]:
                    yield Job(loop, steps, FIXED, (), seed)
                known = LOOPS[loop]().learnable
                together = tuple(name for name in config.learn if name in known)
                for row in config.rows or rows_of(steps):
                    if row in rows_of(steps):
                        yield Job(loop, steps, row, together, seed)
                alone = [name for name in known if name != "examples" or config.noise] if config.each else []
                for name in alone:
                    if (name,) != together:
                        yield from (Job(loop, steps, row, (name,), seed) for row in EACH if row in rows_of(steps))


def solve_job(job: Job, pools: Pools, config: Config) -> Runs:
    """The record of a job, from its file where an earlier run has left one."""
    about = {k: v for k, v in asdict(config).items() if k not in FREE and (k != "last_k" or job.loop == "sites")}
    file = Path(config.out) / "runs" / f"{job.loop}, {job.steps}, {job.row}, {'+'.join(job.learn)}, {job.seed}.json"
    identity = digest(json.dumps(about, default=str))
    if file.is_file() and (kept := json.loads(file.read_text())).get("identity") == identity:
        return kept
    loop, found = LOOPS[job.loop](), {}
    learned = start(loop, job.steps, pools, config)
    if job.row != FIXED:
        learned, found = train(loop, job, learned, pools.train, config)
        found |= costs(job, loop, learned, pools.train, config)
    accuracy = accuracies(loop, learned, pools.test, job.steps).tolist()
    record = asdict(job) | {"identity": identity, "size": float(learned["size"].exp())} | found
    record |= {"accuracy": accuracy, "unseen": pools.test.unseen}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(record).encode())
    print(f"{file.stem}: {100 * np.mean(accuracy):.2f}", flush=True)
    return record


_STARTS: dict[tuple[str, int], dict[str, Tensor]] = {}


def start(loop: Loop[Any], steps: int, pools: Pools, config: Config) -> dict[str, Tensor]:
    """Where all rows start: the fixed step size that is best on validation tasks."""
    key = (type(loop).__name__, steps)
    if key not in _STARTS:
        first = loop.initial(pools.train, steps)
        tried = [first | {"size": torch.tensor([math.log(size)])} for size in config.sizes]
        _STARTS[key] = max(tried, key=lambda learned: float(accuracies(loop, learned, pools.val, steps).mean()))
    return _STARTS[key]


def train(
    loop: Loop[Any], job: Job, first: dict[str, Tensor], pool: AbstractPool, config: Config
) -> tuple[dict[str, Tensor], Runs]:
    """What was learned, and how: losses, seconds, and agreement with the exact gradient on the way."""
    estimator, rng = rows_of(job.steps)[job.row], np.random.default_rng(job.seed)
    leaves = {name: first[name].clone().requires_grad_() for name in job.learn}
    learned, optimizer = first | leaves, torch.optim.Adam(leaves.values(), lr=config.outer_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    agreement, curve, skipped, seconds = list[Runs](), list[float](), 0, time.process_time()
    for step in range(config.steps):
        batch = pool[torch.from_numpy(rng.choice(len(pool), config.tasks_per_step, replace=False))]
        meta = loop.emit(learned, batch)
        problem, held = loop.problem(batch, job.steps), {k: v.detach() for k, v in meta.items()}
        if step % config.check_every == 0:
            paused = time.process_time()
            agreement.append({"step": step} | agrees(estimator, problem, held, meta, leaves))
            seconds += time.process_time() - paused
        found = estimator(problem, held)
        if all(g.isfinite().all() for g in found.grads.values()):
            emitted = {k: v for k, v in meta.items() if v.requires_grad}
            torch.autograd.backward(list(emitted.values()), [found.grads[k] for k in emitted])
            nn.utils.clip_grad_norm_(leaves.values(), 1.0)
            optimizer.step()
            curve.append(float(found.loss))
        else:
            skipped += 1
        optimizer.zero_grad()
        schedule.step()
    seconds = (time.process_time() - seconds) / config.steps
    facts = {"outer_seconds": seconds, "agreement": agreement, "losses": curve, "skipped": skipped}
    return {k: v.detach() for k, v in learned.items()}, facts


def agrees(estimator: AbstractEstimator, problem: mtl.InnerProblem, held: dict, meta: dict, leaves: dict) -> Runs:
    """Cosine and ratio of norms to the exact gradient, of all that is learned together."""
    both = []
    for one in (estimator, Rematerialised()):
        grads = one(problem, held).grads
        emitted = [k for k, v in meta.items() if v.requires_grad]
        parts = torch.autograd.grad(
            [meta[k] for k in emitted], list(leaves.values()), [grads[k] for k in emitted], retain_graph=True
        )
        both.append(torch.cat([p.flatten() for p in parts]).double())
    found, exact = both
    lengths = float(found.norm()), float(exact.norm())
    cosine = float(found @ exact) / (lengths[0] * lengths[1]) if all(lengths) else math.nan
    return {"cosine": cosine, "norm": lengths[0] / lengths[1] if lengths[1] else math.nan}


def costs(job: Job, loop: Loop[Any], learned: dict[str, Tensor], pool: AbstractPool, config: Config) -> Runs:
    """Seconds and MiB of tensors of one meta-gradient; for the head, of the loop on its weights."""
    if job.seed != config.seeds[0]:
        return {}
    batch = pool[torch.arange(min(config.tasks_per_step, len(pool)))]
    with torch.no_grad():
        meta = loop.emit(learned, batch)
    problem = loop.problem(batch, job.steps)
    if isinstance(loop, Head):
        level = torch.repeat_interleave(torch.arange(len(batch.widths)), torch.tensor(batch.widths))
        width = batch.values.shape[-1]
        sizes = learned["rates"] + learned["level_rates"][level] + learned["size"] - math.log(width)
        meta = {k: v for k, v in meta.items() if k not in ("kernel", "start", "schedule")} | {"sizes": sizes}
        problem = loop.on_weights(batch, job.steps)
    estimator = rows_of(job.steps)[job.row]
    result, cost = measure(partial(estimator, problem, meta))
    return {"seconds": cost.seconds, "mib": cost.live_mib, "resident": cost.peak_mib, "pulls": result.pulls}


if __name__ == "__main__":
    answer(main, Config)
