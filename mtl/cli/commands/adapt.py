"""From a few labelled images or texts per class to an adapted task in a file of kilobytes; nothing is trained.

    mtl adapt --backbone resnet18.a1_in1k --data labelled/ --unlabelled new/ --out returns.mtl
    mtl adapt --generator runs/train/channelwise/final --data labelled.csv
    mtl adapt --generator runs/train --data labelled.csv            # trained with --group-families

With --backbone any network of timm or transformers: the generator that comes with the package (or that of --generator,
if it has no weights per channel) reads all levels of the network. With --generator alone, the network that it was
trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mtl
from mtl.cli.commands.closing import closing, command
from mtl.cli.commands.items import ItemOptions, Items, check_paths, labelled, readable, unlabelled
from mtl.cli.options import Checked, Count, CountOrZero, Device, Folder
from mtl.cli.training.family_groups import generators_of
from mtl.cli.training.reading import told

STANDARDISE_BY = 300  # unlabelled examples; more say nothing new
SUFFIX = ".mtl"


@dataclass(frozen=True)
class Config(Checked):
    data: Folder  # labelled: a folder with a sub-folder per class, csv, jsonl, parquet, zip or hub id
    backbone: str | None = None  # any timm name, hf/<id>, folder or mtl/<name>; what it reads decides: images or texts
    generator: str | None = None  # folder of a trained generator (.../final), or of groups; else mtl/universal
    unlabelled: str | None = None  # more examples without labels, best those to be predicted: a folder or a table
    out: str | None = None  # file to write; adapted/<name of the data>.mtl when not given
    checkpoint: str | None = None  # file of weights for a timm backbone
    img_size: Count | None = None  # side of the images in pixels, of a timm network; its own when not given
    pooling: str | None = None  # mean, cls or last; the network's own when not given
    max_length: Count | None = None  # tokens that are read of a text; as many as the network takes when not given
    cross_validate: bool = True  # follow the generator as far as left-out examples agree
    steps: CountOrZero | None = None  # inner steps of --generator; as many as in training when not given
    batch_size: Count = 64  # images or texts per forward pass
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"  # where to run
    items: Items = field(default_factory=ItemOptions)

    def contradictions(self) -> Iterator[str]:
        if self.generator is None and self.backbone is None:
            yield "name a network with --backbone, or a trained generator with --generator"
        if self.backbone is None:
            flags = {"--checkpoint": self.checkpoint, "--img-size": self.img_size, "--pooling": self.pooling}
            for flag, value in (flags | {"--max-length": self.max_length}).items():
                if value is not None:
                    yield f"{flag} {value} is about a network: name it with --backbone"
        elif self.steps is not None:
            yield f"--steps {self.steps} is about the network that a generator was trained on: leave out --backbone"
        if self.out is not None and Path(self.out).suffix != SUFFIX:
            yield f"--out {self.out}: expected a file that ends in {SUFFIX}, such as {Path(self.out).stem}{SUFFIX}"

    @property
    def file(self) -> Path:
        """Where the task goes."""
        return Path(self.out) if self.out is not None else Path("adapted") / f"{_name_of(self.data)}{SUFFIX}"


def main(config: Config) -> Path:
    """Adapt, write the file, and say what to type next."""
    if config.file.exists():
        raise FileExistsError(f"{config.file} is already there; remove it, or choose another file with --out")
    check_paths(data=config.data, unlabelled=config.unlabelled)
    adapted = adapt(config)
    adapted.save(config.file)
    size = config.file.stat().st_size / 1000
    print(f"{config.file}: {adapted.ways} classes on {adapted.model.backbone.name}, {size:,.0f} kB")
    new = config.unlabelled or "NEW"
    closing({"task": config.file}, [command("mtl", "predict", "--task", config.file, new)])
    return config.file


def adapt(config: Config) -> mtl.Adapted:
    """The adapted task of the labelled examples, which are counted class by class first."""
    if config.backbone is None:
        assert config.generator is not None
        groups = generators_of(config.generator)
        adapted = by_best_group(config, groups) if groups else by_generators(config, {"": config.generator})[""]
    else:
        backbone = load(config).to(config.device)
        examples = told_of(config, backbone)
        adapted = mtl.adapt(
            backbone,
            examples,
            some_unlabelled(config, backbone),
            generator=config.generator or "mtl/universal",
            cross_validate=config.cross_validate,
            batch_size=config.batch_size,
        )
    if adapted.choice is not None:
        print(f"chosen: {adapted.choice}")
    return adapted


def by_generators(config: Config, folders: Mapping[str, str | Path]) -> dict[str, mtl.Adapted]:
    """By each of some generators, on the network that they were trained on."""
    learners = {name: mtl.from_pretrained(folder).to(config.device) for name, folder in folders.items()}
    examples = told_of(config, next(iter(learners.values())).backbone)
    options: dict[str, Any] = {"steps": config.steps, "cross_validate": config.cross_validate}
    return {name: learner.adapt(examples, **options) for name, learner in learners.items()}


def by_best_group(config: Config, groups: Mapping[str, Path]) -> mtl.Adapted:
    """By the generator, of several groups of families, that left-out examples find the likeliest.

    Raises:
        ValueError: no examples are left out, which would choose.
    """
    found = by_generators(config, groups)
    if any(adapted.choice is None or not adapted.choice.folds for adapted in found.values()):
        raise ValueError(
            f"--generator {config.generator} has {', '.join(groups)}, and only left-out examples say which suits: give "
            f"two examples per class and no --no-cross-validate, or name one, such as {next(iter(groups.values()))}"
        )
    likely = {name: likelihood(adapted) for name, adapted in found.items()}
    best = max(likely, key=likely.__getitem__)
    print("\n".join(f"{name}: left-out examples have {-value:.3f} nats" for name, value in likely.items()))
    print(f"by {best}")
    return found[best]


def likelihood(adapted: mtl.Adapted) -> float:
    """Mean log-probability of the right class of left-out examples: of the best candidate."""
    assert adapted.choice is not None
    return float(adapted.choice.log_likelihood.max())


def load(config: Config) -> mtl.Backbone:
    assert config.backbone is not None
    options: dict[str, Any] = {"img_size": config.img_size, "max_length": config.max_length}
    options = {name: value for name, value in options.items() if value is not None}
    return mtl.load_backbone(
        config.backbone,
        sites="none",
        levels="all",
        checkpoint=config.checkpoint,
        pooling=config.pooling,
        **options,
    )


def told_of(config: Config, backbone: mtl.Backbone) -> mtl.data.AbstractCollection:
    """The labelled examples, after a line about them."""
    examples = labelled(config.data, backbone, config.items)
    told(examples.notes)
    counts = [f"{name} ({len(examples.items[name])})" for name in examples.class_names]
    shown = ", ".join(counts[:8]) + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")
    print(f"{len(counts)} classes of {backbone.adapter.reads}: {shown}")
    return examples


def some_unlabelled(config: Config, backbone: mtl.Backbone) -> Iterator[Any] | None:
    if config.unlabelled is None:
        return None
    items = unlabelled(config.unlabelled, backbone, config.items)
    some = items[:: max(1, len(items) // STANDARDISE_BY)][:STANDARDISE_BY]  # from all over the folder or file
    return readable(some, [], [])


def _name_of(data: str) -> str:
    """``labelled`` of ``photos/labelled/``, ``tickets`` of ``tickets.jsonl.gz``."""
    return Path(data).resolve().name.partition(".")[0] or "task"
