"""One run of meta_transfer.py: a target trained from its first step to its accuracy on test images, by one method."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtl
from helpers.small_convnet import SmallConvNet
from helpers.transfer_data import Data, Minibatch, Part
from mtl.cli.options import Count, Positive, PositiveOrZero
from mtl.tools.progress import ProgressBar
from mtl.transfer import (
    MatchingWeights,
    PairWeights,
    Source,
    Student,
    Taps,
    Transfer,
    attention_loss,
    matching_loss,
    set_gradients,
)

Regulariser = Literal["none", "last", "all", "attention", "given", "learned"]
SMALL = "small"  # the target that is no timm network
KEPT = ", kept"  # a new target with the mean weights that were learned, from its first step on
Make = Callable[[int], mtl.metagrad.AbstractEstimator]
"""K to an estimator."""


SEARCHED = {"searched pairs": "validation", "oracle pairs": "accuracy"}
"""Weights of pairs out of :func:`candidates`, by the images that choose: the oracle's are those of the test."""


@dataclass(frozen=True)
class Method:
    """What pulls the target towards its source, and who trains that.

    ``parts`` are the images that the target is trained on. ``coarse`` takes K / w matching steps of w times the loss.
    """

    regulariser: Regulariser
    estimator: Make | None = None
    parts: tuple[Part, ...] = ("train",)
    coarse: bool = False


def methods(window: int) -> dict[str, Method]:
    """By name; those with an estimator differ in nothing else."""
    size = lambda k: min(window, k)  # noqa: E731
    learned: dict[str, Make] = {
        "rematerialised": lambda k: mtl.Rematerialised(),
        "windowed, adaptive": lambda k: mtl.Windowed(size(k)),
        "windowed, exact forward": lambda k: mtl.Windowed(size(k), "exact-forward"),
        "windowed, lazy": lambda k: mtl.Windowed(size(k), "lazy"),
        "truncated, half": lambda k: mtl.metagrad.Truncated(math.ceil(k / 2) + 1),
        "truncated, 1": lambda k: mtl.metagrad.Truncated(2),
        "one-step": lambda k: mtl.metagrad.OneStep(),
        "first-order": lambda k: mtl.FirstOrder(),
    }
    both: tuple[Part, ...] = ("train", "held_out")
    by_hand = {
        "from scratch": Method("none"),
        "from scratch, held-out too": Method("none", parts=both),
        "last stage": Method("last"),
        "all pairs": Method("all"),
        "all pairs, held-out too": Method("all", parts=both),
        "attention transfer": Method("attention"),
        **{name: Method("given") for name in SEARCHED},
    }
    coarse = {"fewer, larger steps": Method("learned", learned["rematerialised"], coarse=True)}
    kept = {k + KEPT: Method("given") for k in ("rematerialised", "windowed, adaptive")}
    return by_hand | {k: Method("learned", make) for k, make in learned.items()} | coarse | kept


@dataclass(frozen=True)
class Run:
    """What tells one run from another in one experiment."""

    method: str
    inner_steps: int  # K; 0 where nothing is learned
    seed: int
    beta: float = 0.0  # weight of the matching loss
    inner_lr: float = 0.0  # step size of virtual steps; 0 where nothing is learned
    meta_lr: float = 0.0  # of the meta-networks; 0 where nothing is learned
    pairs: tuple[float, ...] = ()  # weights of the pairs, source stage by source stage, where they are given


def candidates(stages: int, count: int, seed: int) -> list[tuple[float, ...]]:
    """Weights of pairs to choose from, each with a mean of one: one source stage, one target stage, the diagonal, a
    single pair, and random shares up to the count."""
    one = torch.zeros(stages, stages)
    lines = [one.index_fill(axis, torch.tensor(i), 1.0) for axis in (0, 1) for i in range(stages)]
    single = [one.flatten().index_fill(0, torch.tensor(i), 1.0) for i in range(stages**2)]
    rng = np.random.default_rng(seed)
    shares = [torch.tensor(rng.dirichlet([0.5] * stages**2), dtype=torch.float32) for _ in range(count)]
    tried = [w.flatten() for w in (*lines, torch.eye(stages), *single, *shares)][:count]
    return [tuple((stages**2 * w / w.sum()).tolist()) for w in tried]


@dataclass(frozen=True)
class Training:
    """How any target is trained."""

    steps: Count = 300  # training steps
    batch: Count = 16  # images per minibatch
    optimizer: Literal["sgd", "adamw"] = "sgd"  # of the training steps
    lr: Positive = 0.1  # peak step size; cosine schedule to zero
    momentum: PositiveOrZero = 0.9  # momentum of SGD
    weight_decay: PositiveOrZero = 1e-4  # weight decay
    clip: Positive = 5.0  # largest norm of a training step's gradient; a matching loss may grow sixfold
    inner_optimizer: Literal["sgd", "adam"] = "sgd"  # of virtual steps
    inner_momentum: PositiveOrZero = 0.9  # momentum of virtual steps of SGD
    hold: Count = 1  # virtual steps that share a minibatch; a window's length lets it stand for its steps
    learn: Literal["both", "where", "pairs"] = "both"  # what and where; where alone; or a number per pair of stages
    fixed_total: bool = False  # learn shares of the matching loss, not how much there is of it
    every: Count = 12  # training steps per outer step
    window: Count = 5  # virtual steps that share a linearisation; at most K, and must divide it
    same_batch: bool = False  # as in the paper: outer loss and virtual steps use the training step's minibatch
    states_on_host: bool = False  # keep the states of virtual steps in main memory, for large targets


@dataclass(frozen=True)
class Workplace:
    """What all runs share."""

    training: Training
    data: Data
    source: Source
    make_target: Callable[[], nn.Module]
    stages: int = 3  # of the target, at most
    precision: torch.dtype | None = None

    @property
    def matched_parts(self) -> tuple[Part, ...]:
        """What is matched needs no labels; what outer losses are taken on is not matched."""
        return ("train", "pool") if "pool" in self.data.rows else ("train",)

    def matched(self, labelled: Minibatch, *key: int) -> Minibatch:
        """The images that a training step matches: those it is trained on, or more out of a pool."""
        pooled = "pool" in self.data.rows
        return self.data.minibatch(self.matched_parts, self.training.batch, *key, 1) if pooled else labelled


def train(run: Run, place: Workplace) -> tuple[dict[str, Any], nn.Module]:
    """The trained target, and what is to be said of it."""
    t, method = place.training, methods(place.training.window)[run.method]
    torch.manual_seed(run.seed)
    student = student_of(place)
    scheme = scheme_of(run, place, student)
    optimizer = optimizer_of(t, student)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, t.steps)
    meta_optimizer = torch.optim.Adam(trained(scheme.weighting), run.meta_lr or 1.0)
    estimator = method.estimator(run.inner_steps) if method.estimator else None
    start, spent, judged, losses = time.perf_counter(), 0.0, [], []
    for step in ProgressBar(range(t.steps), desc=f"{run.method}, K={run.inner_steps}, seed {run.seed}", leave=False):
        batch = place.data.minibatch(method.parts, t.batch, run.seed, step, 0)
        loss = objective(method.regulariser, run, scheme, batch, place.matched(batch, run.seed, step, 0))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), t.clip)
        optimizer.step()
        schedule.step()
        if estimator is not None and step % t.every == 0:
            begun = time.perf_counter()
            found = outer_step(estimator, scheme, run, place, step, batch)
            set_gradients(scheme.weighting, found.grads)
            meta_optimizer.step()
            spent += time.perf_counter() - begun
            judged.append(found.diagnostics.get("max_rho", torch.zeros(())))
            losses.append(found.loss)
    row: dict[str, Any] = vars(run) | {"seconds": time.perf_counter() - start}
    row |= {"validation": float(correct(student, place.data, "validation").float().mean())}
    right = correct(student, place.data, "test")
    row |= {"accuracy": float(right.float().mean()), "right": "".join(map(str, right.int().tolist()))}
    if estimator is not None:
        row |= {"seconds_per_outer_step": spent / len(losses), "where": where(scheme, place.data)}
        row |= {"max_rho": float(torch.stack(judged).max()), "outer_loss": float(torch.stack(losses[-10:]).mean())}
    return row, student.network


def optimizer_of(training: Training, student: Student) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(student.parameters(), training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(student.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay)


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def outer_step(
    estimator: mtl.metagrad.AbstractEstimator,
    scheme: Transfer,
    run: Run,
    place: Workplace,
    step: int,
    ordinary: Minibatch,
) -> mtl.metagrad.MetaGradient:
    """K virtual steps and one on the target's own loss; the student's weights are where they were afterwards."""
    t = place.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # such methods are there to show it
        return estimator(virtual_problem(scheme, run, place, step, ordinary if t.same_batch else None), scheme.meta)


def virtual_problem(
    scheme: Transfer, run: Run, place: Workplace, step: int, ordinary: Minibatch | None = None
) -> mtl.InnerProblem:
    """The virtual steps of an outer step, on minibatches of their own or all on the one given."""
    t, draw = place.training, place.data.minibatch

    def virtual(k: int) -> tuple[Tensor, list[Tensor]]:
        key = (run.seed, step, 2 + k // t.hold)
        found = ordinary or draw(place.matched_parts, t.batch, *key)
        return found.images, found.maps

    last = ordinary or draw(("train",), t.batch, run.seed, step, 2 + run.inner_steps)
    outer = ordinary or draw(("held_out",), t.batch, run.seed, step, 1)
    return scheme.problem(virtual, (last.images, last.labels), (outer.images, outer.labels))


def objective(regulariser: Regulariser, run: Run, scheme: Transfer, labelled: Minibatch, matched: Minibatch) -> Tensor:
    """The target's own loss and, weighed, what its source says; one pass where both are of the same images."""
    student, same = scheme.student, matched is labelled
    sizes = [m.shape[2:] for m in matched.maps]
    if regulariser == "none":
        return F.cross_entropy(student(labelled.images)[0], labelled.labels)
    own = None if same else F.cross_entropy(student(labelled.images)[0], labelled.labels)
    logits, maps, adapted = student(matched.images, None if regulariser == "attention" else sizes)
    own = F.cross_entropy(logits, labelled.labels) if own is None else own
    if regulariser == "attention":
        return own + run.beta * attention_loss(matched.maps, maps).mean()
    with torch.no_grad():
        weights = pair_weights(regulariser, run, scheme, matched)
    return own + run.beta * matching_loss(weights, matched.maps, adapted).mean()


def pair_weights(regulariser: Regulariser, run: Run, scheme: Transfer, matched: Minibatch) -> PairWeights:
    found = scheme.weighting(matched.maps)
    if regulariser == "last":
        only = torch.zeros_like(found.where)
        only[:, -1, -1] = 1
        return PairWeights(only, found.what)
    if regulariser == "given":
        pairs = torch.tensor(run.pairs, device=found.where.device).view_as(found.where[0])
        return PairWeights(pairs.expand_as(found.where), found.what)
    return found


def student_of(place: Workplace) -> Student:
    network = place.make_target().to(place.source.backbone.device)
    example = place.data.images[:1]
    height, width = example.shape[2:]
    taps = Taps(network.eval(), lambda: network(example), (height, width), most=place.stages)
    student = Student(network, taps, place.data.maps.channels, place.precision)
    return student.to(example.device).train()


def scheme_of(run: Run, place: Workplace, student: Student) -> Transfer:
    t = place.training
    weighting = MatchingWeights(place.data.maps.channels, len(student.taps.names), t.fixed_total)
    weighting.what.requires_grad_(t.learn == "both")
    for layer in weighting.where if t.learn == "pairs" else ():
        layer.weight.requires_grad_(False)  # the bias is left
    lr = run.inner_lr or 1.0
    adam = t.inner_optimizer == "adam"
    optimizer = mtl.InnerAdam(lr, eps=1e-3) if adam else mtl.InnerSGD(lr, t.inner_momentum)
    coarse = min(t.window, run.inner_steps) if methods(t.window)[run.method].coarse else 1
    storage = mtl.metagrad.OnHost() if t.states_on_host else mtl.metagrad.OnDevice()
    on_device = weighting.to(place.data.images.device)
    return Transfer(student, on_device, optimizer, max(1, run.inner_steps), coarse, storage=storage)


@torch.no_grad()
def correct(student: Student, data: Data, part: Part) -> Tensor:
    """Which images of a part the target gets right, ``(n,)``."""
    images, labels = data.part(part)
    student.eval()
    logits = torch.cat([student(x)[0] for x in images.split(256)])
    return logits.argmax(1) == labels


@torch.no_grad()
def where(scheme: Transfer, data: Data) -> list[list[float]]:
    """The mean weight of every pair over the images trained on."""
    return scheme.weighting(data.maps[data.rows["train"][:256]]).where.mean(0).tolist()


def target_maker(name: str, args: str, classes: int, channels: int) -> Callable[[], nn.Module]:
    """Targets with new random weights, by name and JSON of what they are to be built with."""
    options = {"num_classes": classes, "in_chans": channels, **target_options(args)}
    if name == SMALL:
        return lambda: SmallConvNet(**options)
    return lambda: timm.create_model(name, pretrained=False, **options)


def target_options(args: str) -> dict[str, Any]:
    """The arguments that a target is built with, from JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        options = json.loads(args)
    except json.JSONDecodeError as error:
        raise ValueError(f"--target-args {args}: expected JSON such as '{{\"drop_rate\": 0.1}}' ({error})") from error
    if not isinstance(options, dict):
        raise ValueError(f"--target-args {args}: expected names and values, such as '{{\"drop_rate\": 0.1}}'")
    return options
