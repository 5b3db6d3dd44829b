"""Learn a weight for every training example, so that wrong labels count less: a bilevel problem without any few-shot.

    python recipes/reweighting.py   # two minutes on one core, offline
    python recipes/reweighting.py --noise 0.3 --steps 60

Handwritten digits of scikit-learn; half of the training labels are wrong. The inner loop trains a
small network on them, each example weighted by the sigmoid of a logit of its own; the outer loss is that of the trained
network on a few clean examples, and its gradient moves the logits (the problem of arXiv 1803.09050). All seeds are
trained at once, along the task axis. The problem needs nothing of mtl but :mod:`mtl.metagrad`.

Measured, over eight seeds (95 % intervals of paired differences): unweighted training is right on 85.2 ± 2.1 % of the
test images. Weights learned through all 100 steps add 5.4 ± 1.8 points, windowed and exact alike; knowing the wrong
labels would add 7.3 ± 1.7. One step (T1-T2) adds 4.1 ± 2.2, which is 1.3 ± 1.0 less than windows, although its weights
tell right labels from wrong ones better (AUC 0.959, windows 0.934). Training on the clean examples alone adds
2.0 ± 2.0. First order is exactly zero, since the logits act inside the inner loss only; it warns and learns nothing.
Settings were chosen among six on other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

import mtl.metagrad as metagrad
from mtl.cli.answers import answer
from mtl.cli.options import Checked, Count, Folder, Positive, Seed, Share, TwoOrMore
from mtl.tools.files import atomic_write, write_csv

DIGITS = 1797  # images of scikit-learn's digits
ESTIMATORS: dict[str, metagrad.AbstractEstimator] = {
    "windowed": metagrad.Windowed(5),
    "exact": metagrad.Rematerialised(),
    "one-step (T1-T2)": metagrad.OneStep(),
    "first-order": metagrad.FirstOrder(),
}


@dataclass(frozen=True)
class Config(Checked):
    seeds: TwoOrMore = 8  # number of seeds, each with its own split, wrong labels and initial weights
    first_seed: Seed = 100  # the settings below were chosen on seeds 0 to 7
    training: Count = 1000  # examples whose labels are noisy
    clean: Count = 100  # examples with true labels, for the outer loss
    noise: Share = 0.5  # fraction of training labels that are wrong
    hidden: Count = 32  # hidden units of the network
    steps: Count = 100  # inner steps: the whole training of the network
    inner_lr: Positive = 0.25  # step size of the inner loop
    outer_steps: Count = 30  # steps of Adam on the weights of the examples
    outer_lr: Positive = 0.2  # step size of Adam
    threads: Count = 1  # CPU threads
    out: Folder = "runs/reweighting"  # folder for reweighting.csv and reweighting.png

    def contradictions(self) -> Iterator[str]:
        if self.training + self.clean >= DIGITS:
            given = f"--training {self.training} and --clean {self.clean}"
            yield f"{given}: expected fewer than {DIGITS} together, all the images that there are"


@dataclass(frozen=True)
class Data:
    """Inputs ``(seeds, n, 64)`` and labels ``(seeds, n)`` of each part; ``wrong`` marks the noisy training labels."""

    train: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    wrong: Tensor


Row = dict[str, str | float]


def main(config: Config) -> list[Row]:
    torch.set_num_threads(config.threads)
    data, start = noisy_digits(config), initial_weights(config)
    problem = problem_of(data.train, data.clean, start, config)
    equal = torch.zeros(data.wrong.shape)
    weights = {
        "unweighted": equal,
        "true labels only": torch.where(data.wrong, -30.0, 30.0),
        **{name: learn(estimator, problem, equal, config) for name, estimator in ESTIMATORS.items()},
    }
    trained = {name: metagrad.solve(problem, {"logit": logit}) for name, logit in weights.items()}
    alone = problem_of(data.clean, data.clean, start, config)
    trained["clean examples only"] = metagrad.solve(alone, {"logit": torch.zeros(data.clean[1].shape)})
    accuracy = {name: accuracy_of(network, data.test) for name, network in trained.items()}
    rows = [row_of(name, accuracy, weights.get(name), data.wrong) for name in accuracy]
    for row in rows:
        print("{method:20} {accuracy:.1f} ± {half_width:.1f} %".format(**row), end="   ")
        print("{gain:+.1f} ± {gain_half_width:.1f} to unweighted   AUC {auc:.3f}".format(**row))
    difference = interval(accuracy["windowed"] - accuracy["one-step (T1-T2)"])
    print("windowed to one-step: {:+.1f} ± {:.1f} points".format(*difference))
    write(rows, weights["windowed"], data.wrong, Path(config.out))
    return rows


def noisy_digits(config: Config) -> Data:
    """Another split and other wrong labels for each seed."""
    pixels, digits = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    parts, wrong = [], []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator)
        wrong.append(torch.rand(config.training, generator=generator) < config.noise)
        offset = torch.randint(1, 10, (config.training,), generator=generator) * wrong[-1]
        pieces = order.split([config.training, config.clean, len(order) - config.training - config.clean])
        train, clean, test = ((inputs[p], labels[p]) for p in pieces)
        parts.append(((train[0], (train[1] + offset) % 10), clean, test))
    stacked = [
        (torch.stack([x for x, _ in part]), torch.stack([y for _, y in part])) for part in zip(*parts, strict=True)
    ]
    train, clean, test = stacked
    return Data(train, clean, test, torch.stack(wrong))


def initial_weights(config: Config) -> dict[str, Tensor]:
    """Of a network with one hidden layer, ``(seeds, inputs, outputs)``."""
    generator = torch.Generator().manual_seed(config.first_seed)
    draw = lambda n, m: torch.randn(config.seeds, n, m, generator=generator) / n**0.5  # noqa: E731
    zeros = lambda n: torch.zeros(config.seeds, 1, n)  # noqa: E731
    return {
        "w1": 1.4 * draw(64, config.hidden),
        "b1": zeros(config.hidden),
        "w2": draw(config.hidden, 10),
        "b2": zeros(10),
    }


def losses(weights: dict[str, Tensor], examples: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every example, ``(seeds, n)``."""
    return F.cross_entropy(logits_of(weights, examples[0]).mT, examples[1], reduction="none")


def logits_of(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def problem_of(
    train: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor], start: dict[str, Tensor], config: Config
) -> metagrad.InnerProblem:
    """Weights have mean one, so that they share out the attention and leave the step size alone."""

    def inner_loss(weights: dict[str, Tensor], meta: dict[str, Tensor], step: int) -> Tensor:
        importance = torch.sigmoid(meta["logit"])
        return (importance * losses(weights, train)).sum(1) / importance.sum(1)

    return metagrad.InnerProblem(
        init=lambda meta: start,
        inner_loss=inner_loss,
        outer_loss=lambda weights, meta: losses(weights, clean).mean(1),
        num_steps=config.steps,
        optimizer=metagrad.InnerSGD(config.inner_lr),
    )


def learn(
    estimator: metagrad.AbstractEstimator, problem: metagrad.InnerProblem, start: Tensor, config: Config
) -> Tensor:
    """The outer loop: Adam on the logits."""
    logit = start.clone()
    optimizer = torch.optim.Adam([logit], config.outer_lr)
    for _ in range(config.outer_steps):
        logit.grad = estimator(problem, {"logit": logit}).grads["logit"]
        optimizer.step()
    return logit


def accuracy_of(weights: dict[str, Tensor], test: tuple[Tensor, Tensor]) -> np.ndarray:
    """Percent, by seed."""
    return 100 * (logits_of(weights, test[0]).argmax(2) == test[1]).float().mean(1).numpy()


def row_of(name: str, accuracy: dict[str, np.ndarray], logit: Tensor | None, wrong: Tensor) -> Row:
    """Mean over seeds, the difference to unweighted training seed by seed, and the AUC of weights against the truth."""
    mean, half = interval(accuracy[name])
    gain, gain_half = interval(accuracy[name] - accuracy["unweighted"])
    known = [] if logit is None else [roc_auc_score(~w, v) for w, v in zip(wrong, logit, strict=True)]
    auc = float(np.mean(known)) if known else float("nan")
    return {
        "method": name,
        "accuracy": mean,
        "half_width": half,
        "gain": gain,
        "gain_half_width": gain_half,
        "auc": auc,
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval over seeds."""
    n = len(values)
    return float(values.mean()), float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)


def write(rows: list[Row], logit: Tensor, wrong: Tensor, out: Path) -> None:
    """The table, and a picture: accuracies, and the weights of right and wrong labels."""
    write_csv(rows, out / "reweighting.csv")
    figure = Figure((11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for y, row in enumerate(reversed(rows)):
        left.errorbar(float(row["gain"]), y, xerr=float(row["gain_half_width"]), fmt="o", color="#1d4ed8")
    left.set_yticks(range(len(rows)), [str(row["method"]) for row in reversed(rows)])
    left.axvline(0, color="grey", linestyle=":")
    left.set(xlabel="test accuracy above unweighted training, points")
    bins = np.linspace(0, 1, 31).tolist()
    for label, mask in (("right label", ~wrong), ("wrong label", wrong)):
        right.hist(torch.sigmoid(logit[mask]).numpy(), bins, alpha=0.6, label=label)
    right.set(xlabel="learned weight (windowed)", ylabel="training examples")
    right.legend()
    with atomic_write(out / "reweighting.png") as draft:
        figure.savefig(draft, dpi=110)


if __name__ == "__main__":
    answer(main, Config)
