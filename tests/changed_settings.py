"""A hundred ways to continue a run with something changed, for stress_settings.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_runs import (
    CLASSES,
    CONVNET,
    LAZY,
    VIT,
    WORDS,
    Change,
    World,
    channelwise,
    draw,
    edited,
    encoder,
    mirrored,
    nudge,
    pixel,
    write,
)

import mtl
from mtl.metagrad.estimators import Truncated


def worlds(folder: Path) -> dict[str, World]:
    words = [*CLASSES, *WORDS]
    texts = encoder(folder / "encoder", words)
    encoder(folder / "other encoder", words[::-1])
    images = draw(folder / "trees")
    convnet = World(
        images, CONVNET, generator=channelwise(), learner={"inner_steps": 0}, head=mtl.CentredRidge(), statistics=0
    )
    text = World(write(folder / "texts.csv"), {"name": str(texts), "max_length": 8, "sites": "norm"})
    return {"images": World(images, VIT), "levels": convnet, "texts": text}


def changes(folder: Path) -> list[tuple[str, str, str | None, Change | Callable[[World, Path], World]]]:
    """World, what is changed, what the refusal names (None: harmless), and the change."""
    config = lambda **c: lambda w, _: replace(w, config=replace(w.config, **c))  # noqa: E731
    train = lambda **c: lambda w, _: replace(w, train={**w.train, **c})  # noqa: E731
    val = lambda **c: lambda w, _: replace(w, val={**w.val, **c})  # noqa: E731
    adapter = lambda **c: {"touch": lambda b: b.adapter.config.update(c)}  # noqa: E731
    cell = lambda row, column, value: texts(lambda rows: rows[row].__setitem__(column, value))  # noqa: E731
    prepared = lambda f: {"preprocess": f}  # noqa: E731
    network = lambda **c: lambda w, _: replace(w, network={**w.network, **c})  # noqa: E731
    learner = lambda **c: lambda w, _: replace(w, learner={**w.learner, **c})  # noqa: E731
    lazy = lambda **c: learner(estimator=replace(LAZY, **c))  # noqa: E731
    texts = lambda edit: lambda w, place: replace(w, data=write(place.with_suffix(".csv"), edit))  # noqa: E731
    dense = lambda **c: {"generator": lambda b: mtl.SupportConditioned(b.sites, b.width, **({"hidden": 8} | c))}  # noqa: E731

    settings = {"steps": 5, "tasks_per_step": 3, "outer_lr": 2e-3, "step_size_lr": 1e-3, "weight_decay": 0.0,
                "warmup": 2, "clip": 0.5, "validate_every": 4, "validation_tasks": 3}  # fmt: skip
    again = {"steps": 6, "tasks_per_step": 1, "outer_lr": 0.0, "step_size_lr": 0.0, "warmup": 0, "clip": float("inf")}
    pairs = [*settings.items(), *again.items()]
    found: list[Any] = [("images", f"{name} {value}", name, config(**{name: value})) for name, value in pairs]
    sizes: dict[str, list[Any]] = {"ways": [3, (2, 3)], "shots": [1, (1, 2)], "queries": [1, 3], "seed": [1]}
    found += [("images", f"train {k} {v}", f"tasks.{k}", train(**{k: v})) for k, vs in sizes.items() for v in vs]
    sizes = {"shots": [1], "queries": [1], "seed": [7], "family": ["trees"]}
    found += [("images", f"val {k} {v}", f"validation.{k}", val(**{k: v})) for k, vs in sizes.items() for v in vs]
    move = lambda a, b: edited(lambda f: (f / a).rename(f / b))  # noqa: E731
    found += [
        ("images", "train family", "tasks.family", train(family="trees")),
        # split
        ("images", "another train class", "tasks.classes", {"classes": ("ash", "birch", "oak")}),
        ("images", "one more train class", "tasks.classes", {"classes": (*CLASSES[:3], "oak")}),
        ("images", "one train class fewer", "tasks.classes", {"classes": CLASSES[:2]}),
        ("images", "another val class", "validation.classes", {"val_classes": ("elm", "oak")}),
        ("images", "train and val swapped", "tasks.classes", {"classes": CLASSES[3:5], "val_classes": CLASSES[:3]}),
        ("images", "classes in another order", None, {"classes": CLASSES[2::-1]}),
        # data
        ("images", "a pixel of a train image", "tasks.data.contents", edited(pixel("ash/1.png"))),
        ("images", "a pixel of a val image", "validation.data.contents", edited(pixel("fir/4.png"))),
        ("images", "a pixel of a test image", None, edited(pixel("oak/4.png"))),
        ("images", "an image removed", "tasks.data.examples", edited(lambda f: (f / "ash/4.png").unlink())),
        (
            "images",
            "an image added",
            "tasks.data.examples",
            edited(add_image),
        ),
        ("images", "an image of another class", "tasks.data.labels", move("ash/4.png", "birch/9.png")),
        (
            "images",
            "two images swapped",
            "tasks.data.contents",
            edited(swap_images),
        ),
        (
            "images",
            "a class renamed",
            "tasks.classes",
            rename_class,
        ),
        ("images", "a test class added", None, edited(lambda f: shutil.copytree(f / "oak", f / "yew"))),
        ("images", "a file renamed in place", None, move("ash/4.png", "ash/5.png")),
        ("images", "the data moved", None, edited(lambda f: None)),
        ("images", "the data touched", None, edited(lambda f: [os.utime(p) for p in f.rglob("*.png")])),
        ("images", "mode", "tasks.data.mode", lambda w, _: replace(w, mode="RGB")),
        # preprocessing
        ("images", "mirrored images", "tasks.preprocessing", {"preprocess": mirrored}),
        ("images", "a cache of the same", None, {"preprocess": lambda b: mtl.data.InputCache(b.preprocess)}),
        (
            "images",
            "a cache on disk of the same",
            None,
            cached_on_disk,
        ),
        # network
        ("images", "one bit of a weight", "backbone.fingerprint", {"touch": nudge("weight")}),
        ("images", "image size", "backbone", network(img_size=24)),
        (
            "images",
            "crop",
            "backbone.preprocessing.crop_pct",
            adapter(crop_pct=0.5),
        ),
        (
            "images",
            "pixel mean",
            "backbone.preprocessing.mean",
            adapter(mean=(0.4,)),
        ),
        (
            "images",
            "interpolation",
            "backbone.preprocessing.interpolation",
            adapter(interpolation="bilinear"),
        ),
        ("images", "pooling", "backbone.features.pooling", network(pooling="mean")),
        ("images", "depth", "backbone", network(depth=3)),
        ("images", "dtype", "backbone", network(dtype="bfloat16")),
        ("images", "bfloat16 autocast", "precision", {"precision": torch.bfloat16}),
        ("images", "float16 autocast", "precision", {"precision": torch.float16}),
        ("images", "sites ssf", "backbone", network(sites="ssf")),
        ("images", "last_k", "backbone", network(last_k=1)),
        ("images", "levels", "backbone", network(levels="all")),
        ("images", "blocks recomputed", None, {"options": {"checkpoint_blocks": True}}),
        ("images", "examples per chunk", None, {"options": {"examples_per_chunk": 2}}),
        # generator, head, inner loop, estimator
        ("images", "generator class", "generator", {"generator": lambda b: mtl.Static(b.sites, b.width)}),
        ("images", "generator hidden", "generator.hidden", dense(hidden=9)),
        ("images", "generator gate", "generator.gate", dense(gate=0.5)),
        ("images", "generator step size", "generator.step_size", dense(step_size=0.5)),
        (
            "images",
            "a frozen part",
            "frozen",
            lambda w, _: replace(w, generator=lambda b: frozen(w.generator(b))),
        ),
        ("images", "given first weights", "generator_begins", lambda w, p: replace(w, start=saved(w, p))),
        ("images", "seed of the first weights", None, {"seed": 3}),
        ("images", "head scale", "head.scale", {"head": mtl.Cosine(scale=5.0)}),
        ("images", "head", "head.kind", {"head": mtl.Linear()}),
        ("images", "inner steps", "inner_steps", learner(inner_steps=1)),
        ("images", "inner momentum", "inner_optimizer.momentum", learner(optimizer=mtl.InnerSGD(momentum=0.9))),
        (
            "images",
            "inner decay",
            "inner_optimizer.weight_decay",
            learner(optimizer=mtl.InnerSGD(weight_decay=0.1)),
        ),
        ("images", "inner Adam", "inner_optimizer.kind", learner(optimizer=mtl.InnerAdam())),
        ("images", "estimator", "estimator.kind", learner(estimator=mtl.FirstOrder())),
        ("images", "estimator exact", "estimator.kind", learner(estimator=mtl.Exact())),
        ("images", "estimator truncated", "estimator.kind", learner(estimator=Truncated(1))),
        ("images", "window", "estimator.window", lazy(window=2)),
        ("images", "mode of the window", "estimator.mode", lazy(mode="exact-forward")),
        ("images", "anchor", "estimator.anchor", lazy(anchor="start")),
        ("images", "pull", "estimator.pull", lazy(pull="reverse")),
        ("images", "radius", "estimator.pull", lazy(pull=mtl.metagrad.FiniteDifference(0.5))),
        ("images", "lite examples", "lite_examples", learner(lite_examples=2)),
        ("images", "no check of the estimator", "calibrated", config(self_check=False)),
        # what may change
        ("images", "tasks per chunk", None, config(tasks_per_chunk=1)),
        ("images", "save every", None, config(save_every=3)),
        ("images", "workers", None, config(workers=2)),
        ("images", "patience", None, config(patience=3)),
        ("images", "threads", None, {"threads": 2}),
        # all levels of a convolutional network
        ("levels", "one bit of a buffer", "backbone.fingerprint", {"touch": nudge("buffer")}),
        ("levels", "one bit of a weight", "backbone.fingerprint", {"touch": nudge("weight")}),
        ("levels", "levels", "backbone", network(levels=[0, 2])),
        ("levels", "last level", "backbone", network(levels="last")),
        ("levels", "grid", "backbone", network(grid=False)),
        ("levels", "sites", "backbone", network(sites="norm")),
        ("levels", "statistics", "statistics", {"statistics": 1}),
        ("levels", "no statistics", "statistics", {"statistics": None}),
        ("levels", "head l2", "head.l2", {"head": mtl.CentredRidge(l2=1.0)}),
        ("levels", "head", "head.kind", {"head": mtl.NearestClassMean()}),
        ("levels", "generator option", "generator", {"generator": channelwise(step_size=0.05)}),
        (
            "levels",
            "the readout computed once",
            "tasks.preprocessing",
            prepared(precomputed),
        ),
        ("levels", "no check of the estimator", None, config(self_check=False)),
        ("levels", "tasks per chunk", None, config(tasks_per_chunk=1)),
        ("levels", "workers", None, config(workers=1)),
        # texts
        (
            "texts",
            "the same labels, one other text",
            "tasks.data.contents",
            cell(0, 0, "ash tree"),
        ),
        (
            "texts",
            "the same texts, two other labels",
            "tasks.data.contents",
            texts(swap_labels),
        ),
        (
            "texts",
            "the last word of a long text",
            "tasks.data.contents",
            texts(lengthen),
        ),
        ("texts", "a text fewer", "tasks.data.examples", texts(lambda rows: rows.pop(0))),
        ("texts", "another test text", None, cell(-1, 0, "oak tree")),
        ("texts", "the table moved", None, texts(lambda rows: None)),
        ("texts", "max_length", "max_length", network(max_length=6)),
        ("texts", "pooling", "pooling", network(pooling="cls")),
        ("texts", "tokenizer", "vocabulary", network(name=str(folder / "other encoder"))),
        ("texts", "one bit of a weight", "backbone.fingerprint", {"touch": nudge("weight")}),
        ("texts", "sites", "backbone", network(sites="ssf")),
        ("texts", "shots", "tasks.shots", train(shots=1)),
        (
            "texts",
            "upper case",
            "tasks.preprocessing",
            prepared(upper),
        ),
    ]
    return found


def swap_labels(rows: list[list[str]]) -> None:
    rows[0][1], rows[5][1] = rows[5][1], rows[0][1]


def lengthen(rows: list[list[str]]) -> None:
    rows[1][0] += " x"


def add_image(folder: Path) -> None:
    Image.new("L", (32, 32), 7).save(folder / "ash" / "9.png")


def swap_images(folder: Path) -> None:
    first, second = (folder / "ash" / f"{i}.png" for i in (0, 1))
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)


def rename_class(world: World, place: Path) -> World:
    made = edited(lambda f: (f / "ash").rename(f / "aspen"))(world, place)
    return replace(made, classes=("aspen", *world.classes[1:]))


def cached_on_disk(world: World, place: Path) -> World:
    cache = lambda b: mtl.data.InputCache(b.preprocess, folder=place, version=b.cache_key())  # noqa: E731
    return replace(world, preprocess=cache)


def precomputed(backbone: mtl.Backbone) -> Any:
    return lambda items: backbone.with_prefix(backbone.preprocess(items))


def upper(backbone: mtl.Backbone) -> Any:
    return lambda texts: backbone.preprocess([text.upper() for text in texts])


def frozen(generator: Any) -> Any:
    next(generator.parameters()).requires_grad_(False)
    return generator


def saved(world: World, folder: Path) -> Path:
    """A learner whose generator is the one that the run began with: given, all the same."""
    torch.manual_seed(0)
    backbone = mtl.load_backbone(**{"pretrained": False, **world.network})
    mtl.save_pretrained(mtl.MetaLearner(backbone, world.generator(backbone)), folder)
    return folder
