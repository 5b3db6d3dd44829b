"""Small runs, told by everything that they are made of, for stress_settings.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mtl

CLASSES = ("ash", "birch", "cedar", "elm", "fir", "oak")
WORDS = ["red", "green", "blue", "round", "long", "short", "old", "new", "big", "small", "wet", "dry", "hot", "cold"]
VIT = {
    "name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
    "in_chans": 1,
}  # fmt: skip
SIZE = {"input_size": (1, 32, 32)}
CONVNET = {"name": "test_resnet", "in_chans": 1, "sites": "none", "levels": "all", "pretrained_cfg_overlay": SIZE}
LAZY = mtl.Windowed(window=1, mode="lazy", pull="finite-difference")
Change = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """Everything that a run is made of."""

    data: Path
    network: Mapping[str, Any]
    config: mtl.TrainingConfig = field(
        default_factory=lambda: mtl.TrainingConfig(
            steps=4, tasks_per_step=2, warmup=1, validate_every=2, validation_tasks=2, save_every=1
        )
    )
    train: Mapping[str, Any] = field(default_factory=lambda: {"ways": 2, "shots": 2, "queries": 2, "seed": 0})
    val: Mapping[str, Any] = field(default_factory=lambda: {"ways": 2, "shots": 2, "queries": 2, "seed": 0})
    classes: tuple[str, ...] = CLASSES[:3]
    val_classes: tuple[str, ...] = CLASSES[3:5]
    mode: Any = "L"
    generator: Callable[[mtl.Backbone], Any] = lambda b: mtl.SupportConditioned(b.sites, b.width, hidden=8)
    learner: Mapping[str, Any] = field(default_factory=lambda: {"inner_steps": 2, "estimator": LAZY})
    head: Any = field(default_factory=mtl.Cosine)
    precision: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone
    touch: Callable[[mtl.Backbone], None] = lambda b: None
    preprocess: Callable[[mtl.Backbone], Any] = lambda b: b.preprocess
    statistics: int | None = None  # seed of feature statistics
    start: Path | None = None  # a saved learner whose generator the run begins with
    seed: int = 0
    threads: int = 1

    def go(self, folder: Path, until: int | None = None) -> None:
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        backbone = mtl.load_backbone(**{"pretrained": False, **self.network})
        self.touch(backbone)
        backbone.configure(precision=self.precision, **self.options)
        torch.manual_seed(self.seed)
        generator = self.generator(backbone)
        if self.start:
            generator = mtl.from_pretrained(self.start, backbone).generator
        if self.statistics is not None:
            features = torch.randn(50, backbone.width, generator=torch.Generator().manual_seed(self.statistics))
            generator.standardise(mtl.fewshot.FeatureStatistics.of_features(features))
        learner = mtl.MetaLearner(backbone, generator, self.head, **self.learner)
        is_text = self.data.suffix == ".csv"
        collection = mtl.open_texts(self.data) if is_text else mtl.open_images(self.data, mode=self.mode)
        make = lambda classes, sizes: mtl.ClassTasks(  # noqa: E731
            collection, classes, preprocess=self.preprocess(backbone), **sizes
        )
        tasks: Any = make(self.classes, self.train)
        tasks = tasks if until is None else Until(tasks, until)
        mtl.train(learner, tasks, make(self.val_classes, self.val), self.config, folder)


class Gone(Exception):
    """The machine went away."""


@dataclass(frozen=True)
class Until:
    """The same tasks, up to an episode."""

    tasks: mtl.ClassTasks
    end: int

    def identity(self) -> dict[str, Any]:
        return self.tasks.identity()

    def sample(self, index: int) -> mtl.Episode:
        if index >= self.end:
            raise Gone
        return self.tasks.sample(index)


# --- data -------------------------------------------------------------------------------------------------------------


def draw(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = (rng.integers(0, 120, (32, 32)) + 20 * c).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def write(file: Path, change: Callable[[list[list[str]]], Any] = lambda rows: None) -> Path:
    rng = np.random.default_rng(0)
    rows = [[" ".join([name, *rng.choice(WORDS, 9)]), name] for name in CLASSES for _ in range(5)]
    change(rows)
    file.write_text("\n".join(["text,label", *map(",".join, rows)]) + "\n")
    return file


def encoder(folder: Path, words: list[str]) -> Path:
    folder.mkdir()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = {"model_type": "bert", "vocab_size": 22, "max_position_embeddings": 16, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 16}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def edited(edit: Callable[[Path], Any]) -> Callable[[World, Path], World]:
    """A copy of the images, changed."""

    def change(world: World, place: Path) -> World:
        shutil.copytree(world.data, place)
        edit(place)
        return replace(world, data=place)

    return change


def pixel(path: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        image = np.array(Image.open(folder / path))
        image[3, 4] ^= 1
        Image.fromarray(image).save(folder / path)

    return edit


# --- networks ---------------------------------------------------------------------------------------------------------


def nudge(kind: str) -> Callable[[mtl.Backbone], None]:
    """One bit of the last weight or buffer."""

    def touch(backbone: mtl.Backbone) -> None:
        named = backbone.model.named_buffers() if kind == "buffer" else backbone.model.named_parameters()
        *_, value = (v for _, v in named if v.is_floating_point())
        with torch.no_grad():
            value.view(-1).view(torch.int32)[-1] ^= 1

    return touch


def mirrored(backbone: mtl.Backbone) -> Any:
    return lambda items: backbone.preprocess([item.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for item in items])


def channelwise(**options: Any) -> Callable[[mtl.Backbone], Any]:
    return lambda b: mtl.fewshot.make_generator("channelwise", b, **options)
