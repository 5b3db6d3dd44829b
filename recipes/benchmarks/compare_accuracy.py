"""Which estimator trains the better generator in the same wall-clock time?

    python recipes/benchmarks/compare_accuracy.py   # four estimators, a minute each
    python recipes/benchmarks/compare_accuracy.py --seconds 300 --inner-steps 20

Embedded glyph tasks, 5-way 5-shot; a support-conditioned generator is trained from the same start on the same episodes
with each estimator in turn, for so many seconds of training, then judged on the same validation episodes. Differences
are to the exact gradient, paired. Do not run anything beside it: the clock decides.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from command import Checked, Count, Folder, Positive, Seed, answer

import mtl
from mtl.tools.progress import ProgressBar


@dataclass(frozen=True)
class Config(Checked):
    # names of the table of estimators
    estimators: tuple[str, ...] = ("rematerialised", "windowed(5), adaptive", "windowed(5), lazy", "first-order")
    seconds: Positive = 60.0  # seconds of training per estimator
    inner_steps: Count = 10  # inner steps, K
    step_size: Positive = 0.01  # where the learned inner step sizes start
    tasks: Count = 4  # tasks per outer step
    outer_lr: Positive = 1e-3  # learning rate of the generator
    validation_tasks: Count = 120  # validation tasks, the same for all estimators
    threads: Count = 1  # CPU threads
    seed: Seed = 0  # seed of the generator and the episodes
    out: Folder = "runs/compare_estimators"  # folder for accuracy.csv


def main(config: Config) -> mtl.Comparison:
    torch.set_num_threads(config.threads)
    backbone = mtl.load_backbone("mtl/glyphs")
    methods = []
    known = mtl.metagrad.representatives()
    if unknown := sorted(set(config.estimators) - known.keys()):
        raise ValueError(f"estimators {unknown} are unknown; expected some of {', '.join(known)}")
    for name in config.estimators:
        learner, steps = train(known[name], backbone, config)
        methods.append(mtl.learner_method(learner, f"{name}, {steps} outer steps"))
    tasks = mtl.GlyphTasks("val", shots=5, seed=config.seed)
    found = mtl.evaluate(
        methods, tasks, episodes=config.validation_tasks, setting=f"validation, {config.seconds:g} s each"
    )
    Path(config.out).mkdir(parents=True, exist_ok=True)
    found.to_csv(Path(config.out) / "accuracy.csv")
    print(f"\n{found.table()}")
    return found


def train(
    estimator: mtl.metagrad.AbstractEstimator, backbone: mtl.Backbone, config: Config
) -> tuple[mtl.MetaLearner, int]:
    """The training loop itself, bare: ``mtl.train`` adds checkpoints, processes and validation."""
    torch.manual_seed(config.seed)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, step_size=config.step_size, gate=0.1)
    learner = mtl.MetaLearner(backbone, generator, inner_steps=config.inner_steps, estimator=estimator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=config.outer_lr)
    tasks, steps = mtl.GlyphTasks("train", shots=5, queries=5, seed=config.seed), 0
    with ProgressBar(
        total=config.seconds, desc=str(estimator)[:40], unit="s", bar_format="{l_bar}{bar}| {postfix}"
    ) as bar:
        spent = 0.0
        while spent < config.seconds:
            first = steps * config.tasks
            [(_, episode)] = mtl.stack_by_shape([tasks.sample(i) for i in range(first, first + config.tasks)])
            start = time.perf_counter()
            optimizer.zero_grad()
            result = learner.meta_step(episode)
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimizer.step()
            steps, spent = steps + 1, spent + time.perf_counter() - start
            bar.n = min(spent, config.seconds)
            bar.set_postfix_str(f"{steps} outer steps, loss {float(result.losses.mean()):.3f}")
    return learner, steps


if __name__ == "__main__":
    answer(main, Config)
