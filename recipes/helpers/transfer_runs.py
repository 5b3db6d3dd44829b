"""One run of meta_transfer.py: a target trained from its first step to its accuracy on test images, by one method."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtl
from helpers.small_convnet import SmallConvNet
from helpers.transfer_data import Data, Part
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

Regulariser = Literal["none", "last", "all", "attention", "learned"]
SMALL = "small"  # the target that is no timm network
Make = Callable[[int], mtl.metagrad.AbstractEstimator]
"""K to an estimator."""


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
    }
    coarse = {"fewer, larger steps": Method("learned", learned["rematerialised"], coarse=True)}
    return by_hand | {k: Method("learned", make) for k, make in learned.items()} | coarse


@dataclass(frozen=True)
class Run:
    """What tells one run from another in one experiment."""

    method: str
    inner_steps: int  # K; 0 where nothing is learned
    seed: int
    beta: float = 0.0  # weight of the matching loss
    inner_lr: float = 0.0  # step size of virtual steps; 0 where nothing is learned
    meta_lr: float = 0.0  # of the meta-networks; 0 where nothing is learned


@dataclass(frozen=True)
class Training:
    """How any target is trained."""

    steps: Count = 300  # training steps
    batch: Count = 16  # images per minibatch
    lr: Positive = 0.1  # peak step size; cosine schedule to zero
    momentum: PositiveOrZero = 0.9  # momentum of SGD
    weight_decay: PositiveOrZero = 1e-4  # weight decay of SGD
    clip: Positive = 5.0  # largest norm of a training step's gradient; a matching loss may grow sixfold
    inner_momentum: PositiveOrZero = 0.9  # momentum of virtual steps
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


def train(run: Run, place: Workplace) -> tuple[dict[str, Any], nn.Module]:
    """The trained target, and what is to be said of it."""
    t, method = place.training, methods(place.training.window)[run.method]
    torch.manual_seed(run.seed)
    student = student_of(place)
    scheme = scheme_of(run, place, student)
    optimizer = torch.optim.SGD(student.parameters(), t.lr, t.momentum, weight_decay=t.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, t.steps)
    meta_optimizer = torch.optim.Adam(scheme.weighting.parameters(), run.meta_lr or 1.0)
    estimator = method.estimator(run.inner_steps) if method.estimator else None
    start, spent, judged, losses = time.perf_counter(), 0.0, [], []
    for step in ProgressBar(range(t.steps), desc=f"{run.method}, K={run.inner_steps}, seed {run.seed}", leave=False):
        batch = place.data.minibatch(method.parts, t.batch, run.seed, step, 0)
        loss = objective(method.regulariser, run.beta, scheme, *batch)
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


def outer_step(
    estimator: mtl.metagrad.AbstractEstimator, scheme: Transfer, run: Run, place: Workplace, step: int, ordinary: Any
) -> mtl.metagrad.MetaGradient:
    """K virtual steps and one on the target's own loss; the student's weights are where they were afterwards."""
    t, draw = place.training, place.data.minibatch
    if t.same_batch:
        return estimator(scheme.problem(lambda k: ordinary, ordinary), scheme.meta)
    virtual = lambda k: draw(("train",), t.batch, run.seed, step, 2 + k)  # noqa: E731
    outer = draw(("held_out",), t.batch, run.seed, step, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mtl.metagrad.StructuralZeroWarning)  # such methods are there to show it
        return estimator(scheme.problem(virtual, outer), scheme.meta)


def objective(regulariser: Regulariser, beta: float, scheme: Transfer, images: Tensor, labels: Tensor) -> Tensor:
    """The target's own loss and, weighed, what its source says."""
    if regulariser == "none":
        return F.cross_entropy(scheme.student(images)[0], labels)
    source = scheme.source(images)
    if regulariser == "attention":
        logits, maps, _ = scheme.student(images)
        return F.cross_entropy(logits, labels) + beta * attention_loss(source, maps).mean()
    logits, _, adapted = scheme.student(images, [m.shape[2:] for m in source])
    with torch.no_grad():
        choice = scheme.weighting(source)
    if regulariser == "last":
        only = torch.zeros_like(choice.where)
        only[:, -1, -1] = 1
        choice = PairWeights(only, choice.what)
    return F.cross_entropy(logits, labels) + beta * matching_loss(choice, source, adapted).mean()


def student_of(place: Workplace) -> Student:
    network = place.make_target().to(place.source.backbone.device)
    example = place.data.parts["train"][0][:1]
    height, width = example.shape[2:]
    taps = Taps(network.eval(), lambda: network(example), (height, width), most=place.stages)
    student = Student(network, taps, place.source.taps.channels, place.precision)
    return student.to(example.device).train()


def scheme_of(run: Run, place: Workplace, student: Student) -> Transfer:
    t = place.training
    weighting = MatchingWeights(place.source.taps.channels, len(student.taps.names)).to(place.source.backbone.device)
    optimizer = mtl.InnerSGD(run.inner_lr or 1.0, t.inner_momentum)
    coarse = min(t.window, run.inner_steps) if methods(t.window)[run.method].coarse else 1
    storage = mtl.metagrad.OnHost() if t.states_on_host else mtl.metagrad.OnDevice()
    return Transfer(place.source, student, weighting, optimizer, max(1, run.inner_steps), coarse, storage)


@torch.no_grad()
def correct(student: Student, data: Data, part: Part) -> Tensor:
    """Which images of a part the target gets right, ``(n,)``."""
    images, labels = data.parts[part]
    student.eval()
    logits = torch.cat([student(x)[0] for x in images.split(256)])
    return logits.argmax(1) == labels


@torch.no_grad()
def where(scheme: Transfer, data: Data) -> list[list[float]]:
    """The mean weight of every pair over the images trained on."""
    images = data.parts["train"][0]
    return scheme.weighting(scheme.source(images[:256])).where.mean(0).tolist()


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


def source_head(place: Workplace, seed: int) -> dict[str, Any]:
    """The source as it is, with a linear classifier on its standardised features; weight decay chosen on validation."""
    torch.manual_seed(seed)
    start, backbone = time.perf_counter(), place.source.backbone
    with torch.no_grad():
        seen = {k: torch.cat([backbone.features(x).float() for x in images.split(256)])
                for k, (images, _) in place.data.parts.items()}  # fmt: skip
    mean, std = seen["train"].mean(0), seen["train"].std(0) + 1e-3
    seen = {k: (v - mean) / std for k, v in seen.items()}
    fits = [
        fitted(seen["train"], place.data.parts["train"][1], place.data.classes, decay)
        for decay in (1e-3, 1e-2, 1e-1, 1.0)
    ]
    right = lambda head, part: head(seen[part]).argmax(1) == place.data.parts[part][1]  # noqa: E731
    head = max(fits, key=lambda h: float(right(h, "validation").float().mean()))
    row = vars(Run("source, new head", 0, seed)) | {"seconds": time.perf_counter() - start}
    row |= {"validation": float(right(head, "validation").float().mean())}
    test = right(head, "test")
    return row | {"accuracy": float(test.float().mean()), "right": "".join(map(str, test.int().tolist()))}


def fitted(features: Tensor, labels: Tensor, classes: int, decay: float) -> nn.Linear:
    head = nn.Linear(features.shape[1], classes).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=decay)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
    return head
