"""What each of the toolkit's shortcuts is worth, one at a time: ratios of a meta-gradient with it and without.

    python recipes/benchmarks/compare_speed.py
    python recipes/benchmarks/compare_speed.py --compile   # a minute or three to compile

The workload of compare_estimators.py (a timm ViT, scale and shift after every layer and a cosine head), default
estimator. Pairs are timed in turn, so that a busy machine slows both. Three minutes by default on one thread.

    prefix      only the last third of the blocks is modulated; what lies below is computed once per support set
    chunk       eight tasks in one dense forward, against one after the other
    budget      the exact gradient with every step's graph kept, against one at a time
    checkpoint  activations of every block recomputed (this one costs time; it saves memory)
    bf16        autocast, against float32
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import compare_estimators
import torch
from command import Checked, Count, Device, Folder, answer
from measuring import MIB, device_of, flat, timed

import mtl
from mtl.metagrad.problem import inner_gradient
from mtl.networks.backbones import Prepared
from mtl.tools.memory import LiveBytes


@dataclass(frozen=True)
class Config(Checked):
    depth: Count = 12  # number of blocks
    inner_steps: Count = 5  # inner steps, K
    tasks: Count = 8  # tasks of the chunk
    repeats: Count = 3  # timed runs; the fastest counts
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    compile: bool = False  # measure torch.compile of the inner gradient too
    out: Folder = "runs/compare_speed"  # folder for the networks' configurations


def main(config: Config) -> dict[str, float]:
    torch.set_num_threads(config.threads)
    ratios = {
        "prefix": _prefix(config),
        "chunk": _chunk(config),
        "budget": _against(config, "budget", mtl.Rematerialised(), mtl.Rematerialised(budget=math.inf)),
        "checkpoint": _checkpoint(config),
        "bf16": _bf16(config),
    }
    return ratios | ({"compile": _compile(config)} if config.compile else {})


def workload(config: Config, **changes) -> tuple[mtl.MetaLearner, mtl.Episode]:
    settings = compare_estimators.Config(depth=config.depth, out=config.out, device=config.device, **changes)
    return compare_estimators.workload("vit", settings)


def gradient(
    learner: mtl.MetaLearner, episode: mtl.Episode, k: int, estimator: mtl.metagrad.AbstractEstimator | None = None
) -> mtl.metagrad.MetaGradient:
    meta = {n: v.detach() for n, v in learner.generator(learner.view(episode.support)).items()}
    return (estimator or mtl.Windowed())(replace(learner.problem(episode), num_steps=k), meta)


def _prefix(config: Config) -> float:
    learner, episode = workload(config, last_k=max(1, config.depth // 3))
    backbone = learner.backbone
    run = lambda: gradient(learner, episode, config.inner_steps)  # noqa: E731

    def without() -> None:
        backbone.prepare = lambda inputs: inputs if isinstance(inputs, Prepared) else Prepared(mtl.Inputs.of(inputs))
        try:
            run()
        finally:
            del backbone.prepare

    return ratio(config, "prefix", without, run)


def _chunk(config: Config) -> float:
    learner, episode = workload(config)
    times = _times(config.tasks)
    several = mtl.Episode(episode.support.map(times), episode.query.map(times), episode.ways)

    def one_by_one() -> None:
        for t in range(config.tasks):
            gradient(learner, several[t : t + 1], config.inner_steps)

    return ratio(config, "chunk", one_by_one, lambda: gradient(learner, several, config.inner_steps))


def _times(tasks: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda v: v.repeat(tasks, *[1] * (v.dim() - 1))


def _against(
    config: Config, name: str, one: mtl.metagrad.AbstractEstimator, other: mtl.metagrad.AbstractEstimator
) -> float:
    pair = workload(config)
    run = lambda estimator: lambda: gradient(*pair, config.inner_steps, estimator)  # noqa: E731
    return ratio(config, name, run(one), run(other))


def _checkpoint(config: Config) -> float:
    learner, episode = workload(config)

    def run(checkpointed: bool) -> None:
        learner.backbone.configure(checkpoint_blocks=checkpointed)
        gradient(learner, episode, config.inner_steps)

    return ratio(config, "checkpoint", lambda: run(False), lambda: run(True))


def _bf16(config: Config) -> float:
    pair = workload(config)
    device = device_of(config.device).type
    exact = gradient(*pair, config.inner_steps)

    def run(context: Callable[[], contextlib.AbstractContextManager]) -> mtl.metagrad.MetaGradient:
        with context():
            return gradient(*pair, config.inner_steps)

    low = lambda: run(lambda: torch.autocast(device, torch.bfloat16))  # noqa: E731
    cosine = float(torch.cosine_similarity(flat(low().grads), flat(exact.grads), 0))
    print(f"{'':12} cosine of bf16 to float32: {cosine:.4f}")
    return ratio(config, "bf16", lambda: run(contextlib.nullcontext), low)


def _compile(config: Config) -> float:
    learner, episode = workload(config)
    problem, meta = compare_estimators.typed_problem(learner, episode, config.inner_steps)
    weights = {k: v.detach() for k, v in problem.init(meta).items()}
    compiled = torch.compile(torch.func.grad(lambda w: problem.inner_loss(w, meta, 0).sum()))
    start = time.perf_counter()
    compiled(weights)
    print(f"{'':12} compiled in {time.perf_counter() - start:.0f} s")
    return ratio(config, "compile", lambda: inner_gradient(problem, weights, meta, 0), lambda: compiled(weights))


def ratio(config: Config, name: str, without: Callable[[], object], with_it: Callable[[], object]) -> float:
    """How many times faster it is with the shortcut; the runs alternate, the fastest of each counts."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(config.repeats):
        for run, times in zip((without, with_it), seconds, strict=True):
            times.append(timed(run)[0])
    slow, fast = (min(times) for times in seconds)
    memory = []
    for run in (without, with_it):
        with LiveBytes() as counter:
            run()
        memory.append(counter.peak / MIB)
    print(
        f"{name:12} {slow:6.2f} s -> {fast:6.2f} s, {slow / fast:5.2f} times as fast; "
        f"{memory[0]:6.0f} MiB -> {memory[1]:6.0f} MiB",
        flush=True,
    )
    return slow / fast


if __name__ == "__main__":
    answer(main, Config)
