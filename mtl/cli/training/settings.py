"""Settings of the few-shot recipes, and which of them contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

import mtl
from mtl.cli.options import (
    Checked,
    Count,
    CountOrZero,
    Counts,
    Folder,
    Positive,
    PositiveOrZero,
    Seed,
    TwoOrMore,
    complaints_of,
)
from mtl.cli.training.questions import Questions
from mtl.cli.training.reading import Reading

Head = Literal["centred-ridge", "cosine", "linear", "ncm", "ridge"]  # a key of mtl.fewshot.HEADS
Generator = Literal["channelwise", "refined", "dense", "code"]  # a key of mtl.fewshot.GENERATORS
Estimator = Annotated[mtl.metagrad.EstimatorOptions, tyro.conf.OmitArgPrefixes]  # --estimator NAME, --window N, ...
Inner = Annotated[mtl.metagrad.InnerOptions, tyro.conf.OmitArgPrefixes]  # --inner-optimizer NAME, --inner-clip N, ...
TrackerName = Literal[  # accelerate's
    "tensorboard", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio", "none"
]
Asked = Annotated[Questions, tyro.conf.OmitArgPrefixes]  # --label-columns, --hold-out-families, ...
Read = Annotated[Reading, tyro.conf.OmitArgPrefixes]  # --encoding, --class-level
BASELINES = tuple(key for key in mtl.fewshot.BASELINES if key != "full")  # full fine-tuning is by far the slowest


@dataclass(frozen=True)
class Memory:
    """For backbones and support sets that are too large otherwise; docs/large-backbones.md says what to try first."""

    checkpoint_blocks: bool = False  # recompute the activations of modulated blocks on the way back
    examples_per_chunk: Count | None = None  # examples of a task in one forward pass, each chunk recomputed
    lite_examples: Count | None = None  # support examples of a task that carry gradients (LITE)
    dtype: str | None = None  # dtype of the stored weights; bfloat16 halves their memory
    device_map: str | None = None  # auto spreads the weights over devices, main memory and disk
    quantization: Literal["8bit", "4bit"] | None = None  # load a transformers network in fewer bits (bitsandbytes)
    shard: bool = False  # divide the weights over all processes (FSDP2)


@dataclass(frozen=True)
class Settings(Checked):
    """What can be said of any few-shot run; each recipe adds its data and has defaults of its own."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("data", "image_column", "image_folder", "text_column", "families", "kept_episodes", "cache_dir"),
        "network": (
            "backbone", "checkpoint", "encoder", "img_size", "pooling", "max_length", "levels", "sites", "last_k",
        ),
        "task": ("ways", "shots", "queries"),
        "generator": ("generator", "head", "inner_steps", "step_size", "gate"),
        "training": (
            "warm_steps", "steps", "learn", "tasks_per_step", "tasks_per_chunk", "outer_lr", "validation_tasks",
            "mixed_precision", "seed", "tracker",
        ),
        "comparison": ("tuning_episodes", "test_episodes", "cross_validate", "tuned_inside", "baselines"),
    }  # fmt: skip

    out: Folder = "runs/few_shot"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # your own data, one set or several; the embedded tasks when not given
    backbone: str = ""  # name of the frozen network
    img_size: Count | None = None  # side of the images in pixels, of a timm network; its own when not given
    levels: Literal["last", "all"] = "all"  # features: the network's own, or mean, deviation and grid of all its stages
    sites: Literal["none", "norm", "ssf"] = "none"  # modulated inside: nothing, normalisations, or linear layers too
    last_k: Count | None = None  # modulate only the last k blocks
    generator: Generator = "channelwise"  # one small network for all channels; refined: and a loop over levels
    ways: TwoOrMore = 5  # classes per task
    shots: Counts = (5, 1)  # examples per class; trained on in turn, tested one by one
    queries: Count = 10  # query examples per class; half as many in training through modulated sites
    head: Head = "centred-ridge"  # how features become logits
    inner_steps: CountOrZero = 0  # gradient steps per task
    step_size: Positive = 0.01  # where the learned inner step sizes start
    gate: PositiveOrZero = 0.1  # size of the generator's first changes to the network; 0 starts as no change
    warm_steps: CountOrZero = 1500  # outer steps of the first stage, without an inner loop (cheap)
    steps: CountOrZero = 40  # outer steps of the second stage, through the inner loop
    learn: Literal["all", "rates"] = "all"  # in the second stage: all weights, or step sizes, momentum and decay alone
    tasks_per_step: Count = 16  # tasks per outer step; half as many through the inner loop
    tasks_per_chunk: Count = 16  # tasks in one forward pass; lower it when memory is short
    kept_episodes: Count = 2000  # different training episodes of embedded tasks, whose features are computed once
    outer_lr: Positive = 2e-3  # learning rate of the generator; a quarter of it in the second stage
    validation_tasks: Count = 48  # episodes that choose the best generator
    tuning_episodes: Count = 6  # validation episodes that choose each baseline's setting, per number of shots
    test_episodes: TwoOrMore = 80  # test episodes per number of shots; papers use 600
    cache_dir: str | None = None  # keep preprocessed examples on disk, for later runs on the same network and data
    cross_validate: bool = True  # a row more: the generator, followed as far as left-out support examples agree
    tuned_inside: bool = False  # a row more: scale and shift tuned per task inside the network, by far the slowest
    baselines: tuple[str, ...] = BASELINES  # rows of the table; full, lora and ia3 are there too
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None  # what accelerate launch was told, if not given
    tracker: TrackerName = "tensorboard"  # where losses, accuracies and settings go; none: into metrics.jsonl alone
    seed: Seed = 0  # seed of the generator, the split and the episodes
    questions: Asked = field(default_factory=Questions)  # label columns of your own data, and how they are divided
    reading: Read = field(default_factory=Reading)  # of files of your own
    estimator: Estimator = field(default_factory=mtl.metagrad.EstimatorOptions)  # of the meta-gradient
    inner: Inner = field(default_factory=mtl.metagrad.InnerOptions)  # optimiser of the inner loop
    memory: Memory = field(default_factory=Memory)  # for large backbones

    @property
    def suggested(self) -> str:
        """Networks for data of your own."""
        raise NotImplementedError

    @property
    def kept(self) -> str | None:
        """Where a comparison keeps its results; nowhere where processes share a network, and all have to do all."""
        return None if self.memory.shard else f"{self.out}/comparison"

    def contradictions(self) -> Iterator[str]:
        if self.data and not self.backbone:
            yield f"--data {' '.join(self.data)}: name the network that reads it with --backbone, {self.suggested}"
        if not self.data:
            flags = [*self.questions.asked(), *self.reading.asked()]
            yield from (f"{flag} is about data of your own: name it with --data" for flag in flags)
        if not self.warm_steps and not (self.inner_steps and self.steps):
            yield "no step to train: expected --warm-steps 1 or more, or --steps and --inner-steps 1 or more"
        if self.last_k is not None and self.sites == "none":
            yield f"--last-k {self.last_k} is about blocks that are modulated inside: give --sites norm or ssf too"
        if not self.inner_steps and self.inner != mtl.metagrad.InnerOptions():
            yield "--inner-optimizer and its options are about the inner loop: give --inner-steps 1 or more too"
        if self.learn == "rates" and not (self.inner_steps and self.steps):
            yield "--learn rates is about the inner loop: give --inner-steps 50 and --steps 1 or more too"
        if self.generator == "refined" and not self.inner_steps:
            yield "--generator refined needs its inner loop: give --inner-steps 50, or take --generator channelwise"
        if self.generator == "refined" and self.inner != mtl.metagrad.InnerOptions():
            yield "--generator refined brings its own inner optimiser, whose momentum it emits: leave --inner-... out"
        if self.generator != "dense" and self.gate != Settings.gate:
            yield f"--gate {self.gate} is an option of --generator dense; {self.generator} has no gates"
        yield from complaints_of(
            lambda: mtl.fewshot.choose_baselines(*self.baselines), self.estimator.build, self.inner.build
        )


def check_data(data: Sequence[str]) -> None:
    """Look for data before a network is loaded. A name like ``owner/set`` may be one of the hub, which it can tell.

    Raises:
        FileNotFoundError: a path leads nowhere.
    """
    for name in data:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not Path(name).exists():
            raise FileNotFoundError(f"--data {name}: no such file or folder")
