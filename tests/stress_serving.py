"""Serve many adapted tasks from many threads and processes, and compare every answer with serving alone.

    python tests/stress_serving.py --threads 8 --tasks 50 --rounds 2

Small random networks of four families (timm's convolutions and transformers, texts and images of transformers), with
sites and without, read at the last level and at all. All threads begin at once on a network that nobody has called yet,
so they also find its frozen prefix together; then each asks all tasks in an order of its own, while one more thread
adapts new tasks, one trains through checkpointed blocks, and one copies, pickles and merges. The same tasks then answer
in forked, spawned and fork-server processes. Answers are equal bit for bit, but for one thing: PyTorch chooses the
kernel of attention for the whole process, and training needs another one. Answers of networks with attention may
therefore differ by as much as one thread alone finds between the two kernels, or by 1e-6. Six minutes for one round on
two cores; test_serving.py does a part.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import build
from serving import WAYS, adapt, adapted_tasks, learner_of, logits_of, queries_of, served
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtl

NETWORKS = {
    "timm, convolutions": "test_resnet",
    "timm, transformer": "vit_tiny_patch16_224",
    "transformers, texts": "bert",
    "transformers, images": "vit",
}
OPTIONS: list[dict[str, Any]] = [
    {"sites": sites, "levels": levels, "last_k": last_k}
    for sites, last_k in (("norm", None), ("norm", 1), ("none", None))
    for levels in ("last", "all")
]
METHODS = ("fork", "spawn", "forkserver")


@dataclass
class Tally:
    """What was found: answers compared, and the largest difference, relative to the largest logit."""

    answers: int = 0
    largest: float = 0.0

    def compare(self, found: Tensor, expected: Tensor) -> None:
        self.answers += 1
        self.largest = max(self.largest, float((found - expected).abs().max() / expected.abs().max()))


def serve_at_once(learner: mtl.MetaLearner, alone: mtl.MetaLearner, count: int, threads: int, rounds: int) -> Tally:
    """All of it at once, on a learner that nobody has used; ``alone`` is another one like it.

    Without attention in the network all answers are the same bit for bit.
    """
    tally, queries = Tally(), queries_of(alone)
    expected = [task.logits(queries) for task in adapted_tasks(alone, count)]
    gate = threading.Barrier(threads)

    def first(thread: int) -> list[tuple[int, Tensor]]:
        gate.wait()
        return [(i, adapt(learner, i).logits(queries)) for i in range(thread, count, threads)]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(first, range(threads)))
    tasks, done = adapted_tasks(learner, count), threading.Event()
    gradient = _gradient(alone, tasks[0].support)
    with ThreadPoolExecutor(3) as pool:
        others = [
            pool.submit(_until, done, lambda: tally.compare(adapt(learner, 0).logits(queries), expected[0])),
            pool.submit(_until, done, lambda: tally.compare(_gradient(learner, tasks[0].support), gradient)),
            pool.submit(
                _until, done, lambda: [tally.compare(t.logits(queries), e) for t, e in _copies(tasks, expected)]
            ),
        ]
        try:
            found += served(tasks, queries, threads=threads, rounds=rounds)
        finally:
            done.set()
        _raise_first(others)
    for answers in found:
        for task, logits in answers:
            tally.compare(logits, expected[task])
    return tally


def kernel_difference(alone: mtl.MetaLearner, count: int) -> float:
    """How much the answers of one thread differ, at most, between the two kernels of attention."""
    tally, queries, tasks = Tally(), queries_of(alone), adapted_tasks(alone, count)
    expected = [task.logits(queries) for task in tasks]
    with sdpa_kernel(SDPBackend.MATH):
        for again, logits in zip(adapted_tasks(alone, count), expected, strict=True):
            tally.compare(again.logits(queries), logits)
    return tally.largest


def _until(done: threading.Event, act: Callable[[], Any]) -> None:
    while not done.is_set():
        act()


def _raise_first(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _copies(
    tasks: Sequence[mtl.fewshot.Adapted], expected: Sequence[Tensor]
) -> list[tuple[mtl.fewshot.Adapted, Tensor]]:
    """Two tasks, copied and pickled, while their network serves; a merged network too, which is let go."""
    if not tasks[0].model.generator.standard.even:
        tasks[0].merge()
    return [(copy.deepcopy(tasks[0]), expected[0]), (pickle.loads(pickle.dumps(tasks[-1])), expected[-1])]


def _gradient(learner: mtl.MetaLearner, support: mtl.Examples) -> Tensor:
    """The meta-gradient through checkpointed blocks."""
    learner.generator.zero_grad()
    learner.meta_step(mtl.Episode(support, support, WAYS))
    return torch.cat([p.grad.flatten() for p in learner.generator.parameters() if p.grad is not None])


def serve_elsewhere(tasks: Sequence[mtl.fewshot.Adapted], queries: Any, method: str) -> Tally:
    """The same tasks in two processes."""
    tally = Tally()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        answers = [pool.submit(logits_of, task, queries) for task in tasks]
        for task, answer in zip(tasks, answers, strict=True):
            tally.compare(answer.result(), task.logits(queries))
    return tally


def make(name: str, options: dict[str, Any]) -> mtl.MetaLearner:
    with tempfile.TemporaryDirectory() as folder:
        backbone = build(name, Path(folder), **options)
    return learner_of(backbone.configure(checkpoint_blocks=True))


def main(threads: int, tasks: int, rounds: int, methods: Sequence[str], options: Sequence[dict[str, Any]]) -> None:
    for family, name in NETWORKS.items():
        for how in options:
            begin = time.perf_counter()
            learner, alone = (make(name, how) for _ in range(2))
            tally = serve_at_once(learner, alone, tasks, threads, rounds)
            seconds, kernels = time.perf_counter() - begin, kernel_difference(alone, tasks)
            off = f"off by {tally.largest:.1e}, kernels by {kernels:.1e}"
            print(f"{family}, {how}: {tally.answers} answers, {off}, {seconds:.0f} s", flush=True)
            assert tally.largest <= (0 if name == "test_resnet" else max(1e-6, 2 * kernels))
        for method in methods:
            tally = serve_elsewhere(adapted_tasks(alone, 4), queries_of(alone), method)
            print(f"{family}, {method}: {tally.answers} answers, off by {tally.largest:.1e}", flush=True)
            assert tally.largest == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.threads, given.tasks, given.rounds, METHODS, OPTIONS)
