"""How good the ready generator is on your data, against tuned baselines, and what a generator of your own would add.

    mtl compare --data photos/ --backbone resnet18.a1_in1k
    mtl compare --data tickets.csv --text-column body --backbone mtl/minilm --own-steps 600
    mtl compare --data photos/ --backbone resnet18.a1_in1k --generator runs/photos/channelwise/final

Tasks of your validation classes choose the settings of the baselines, tasks of your test classes compare. The training
classes say how far features vary, and train the generator of --own-steps. Results are kept: the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

import mtl
from mtl.cli.commands import train
from mtl.cli.commands.closing import closing, command, pictures_of
from mtl.cli.commands.items import check_paths
from mtl.cli.options import Checked, Count, CountOrZero, Counts, Folder, Seed, TwoOrMore
from mtl.cli.report import write_report
from mtl.cli.training import few_shot, run_folder
from mtl.cli.training.questions import Questions
from mtl.cli.training.reading import Reading
from mtl.cli.training.settings import BASELINES
from mtl.tools.files import write_whole
from mtl.tools.json_files import read_json
from mtl.tools.lock import folder_lock

READY, OWN = "ready generator", "own generator"


@dataclass(frozen=True)
class Config(Checked):
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("data", "image_column", "image_folder", "text_column", "cache_dir"),
        "network": ("backbone", "checkpoint", "img_size", "pooling", "max_length"),
        "generator": ("generator", "own_steps"),
        "comparison": ("ways", "shots", "queries", "tuning_episodes", "test_episodes", "baselines", "seed"),
    }

    out: Folder = "runs/compare"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # class folders, csv, jsonl, parquet, zip or hub id; embedded glyphs when not given
    image_column: str | None = None  # column of file names or images, where a table has no usual name for it
    image_folder: str | None = None  # what the file names of a table are relative to; its own folder when not given
    text_column: str | None = None  # column of texts, where a table has no usual name for it
    cache_dir: str | None = None  # keep preprocessed examples on disk, for later runs on the same network and data
    backbone: str = ""  # any timm name, hf/<id>, folder or mtl/<name>; mtl/glyphs, for the glyphs, when not given
    checkpoint: str | None = None  # file of weights for a timm backbone
    img_size: Count | None = None  # side of the images in pixels, of a timm network; its own when not given
    pooling: str | None = None  # mean, cls or last; the network's own when not given
    max_length: Count | None = None  # tokens that are read of a text; as many as the network takes when not given
    generator: str | None = None  # folder of a trained generator (.../final), rows more
    own_steps: CountOrZero = 0  # train a generator on the training classes for so many steps first, rows more
    ways: TwoOrMore = 5  # classes per task
    shots: Counts = (5, 1)  # examples per class, one table each
    queries: Count = 10  # query examples per class
    tuning_episodes: Count = 6  # validation episodes that choose each baseline's setting, per number of shots
    test_episodes: TwoOrMore = 80  # test episodes per number of shots; papers use 600
    baselines: tuple[str, ...] = BASELINES  # rows of the table; full, lora and ia3 are there too
    seed: Seed = 0  # seed of the split and the episodes
    questions: Annotated[Questions, tyro.conf.OmitArgPrefixes] = field(default_factory=Questions)
    reading: Annotated[Reading, tyro.conf.OmitArgPrefixes] = field(default_factory=Reading)

    def contradictions(self) -> Iterator[str]:
        try:
            self.settings  # noqa: B018 (checks what the options say together)
        except ValueError as error:
            yield str(error)
        if self.generator is not None and self.own_steps:
            yield "give either --generator or --own-steps: one generator of your own is compared"

    @property
    def settings(self) -> train.Config:
        """Of a run that trains the generator of ``own_steps``."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("generator", "own_steps")}
        return train.Config(**shared, warm_steps=self.own_steps or 1, tracker="none")


def main(config: Config) -> list[mtl.Comparison]:
    check_paths(generator=config.generator)
    settings = config.settings
    accelerator = few_shot.accelerator_of(settings)
    backbone = few_shot.backbone_of(settings, accelerator, settings.network, **settings.load_options)
    mtl.baselines(backbone, table=mtl.fewshot.choose_baselines(*config.baselines))  # refused now, if at all
    with folder_lock(config.out):
        begin(config)
        sources = few_shot.Sources.of(train.maker(settings, backbone), settings)
        statistics = few_shot.statistics_of(backbone, sources.train)
        learners = {READY: ready(backbone, statistics)}
        if config.generator is not None:
            learners[OWN] = mtl.from_pretrained(config.generator, backbone)
        elif config.own_steps:
            learners[OWN] = few_shot.meta_train(
                settings.generator, settings, backbone, sources, accelerator, statistics
            )
        methods = [mtl.learner_method(x, cross_validated(n), cross_validate=True) for n, x in learners.items()]
        methods += [mtl.learner_method(learner, name) for name, learner in learners.items()]
        found = few_shot.compare_methods(settings, backbone, methods, sources, statistics)
    mtl.tools.accuracy_figure(found, Path(config.out) / "accuracy.png")
    write_whole(Path(config.out) / run_folder.FINISHED, json.dumps({"command": run_folder.COMPARE}).encode())
    write_report(config.out)
    close(config, found)
    return found


def begin(config: Config) -> None:
    """Note the settings in the folder, which is not finished any more.

    Raises:
        ValueError: it is the folder of a training.
    """
    out = Path(config.out)
    noted = out / run_folder.CONFIG
    if noted.is_file() and (whose := run_folder.command_of(read_json(noted))) != run_folder.COMPARE:
        raise ValueError(f"--out {out}: a run of {whose} is there; choose another folder")
    (out / run_folder.FINISHED).unlink(missing_ok=True)
    run_folder.note_settings(out, config, run_folder.COMPARE)


def ready(backbone: mtl.Backbone, statistics: mtl.fewshot.FeatureStatistics | None) -> mtl.MetaLearner:
    """The generator that comes with the package, on this network."""
    learner = mtl.load_generator("mtl/universal", backbone)
    if statistics is not None:
        learner.generator.standardise(statistics)
    return learner


def cross_validated(name: str) -> str:
    return f"{name}, cross-validated"


def summary(found: mtl.Comparison) -> str:
    """One line: the ready generator against the best baseline, and what a generator of one's own adds to it."""
    reference = found.row(found.reference)
    said = f"{found.setting}: {reference.method} {reference.accuracy.mean():.1%}"
    for best in found.baselines()[:1]:
        verdict = found.verdict(best.method)
        said += f", {_points(verdict.difference, verdict.half_width)} over the best baseline ({best.method})"
    if own := [row for row in found.rows if row.method.startswith(cross_validated(OWN))]:
        verdict = found.verdict(own[0].method)
        said += f"; your own generator adds {_points(-verdict.difference, verdict.half_width)}"
    return said


def _points(difference: float, half_width: float) -> str:
    return f"{100 * difference:+.1f} ± {100 * half_width:.1f} points"


def close(config: Config, found: list[mtl.Comparison]) -> None:
    """What the tables say, and commands for either way on."""
    out = Path(config.out)
    print("\n".join(summary(comparison) for comparison in found))
    network = config.settings.network
    data = config.data or ("DATA",)
    following = [command("mtl", "adapt", "--backbone", network, "--data", "LABELLED")]
    own = config.generator or (out / "channelwise" / "final" if config.own_steps else None)
    if own is not None:
        following.append(command("mtl", "adapt", "--generator", own, "--data", "LABELLED"))
    else:
        given = [] if not config.data else ["--data", *data, "--backbone", network]
        following.append(command("mtl", "compare", *given, "--out", config.out, "--own-steps", "600"))
    closing({"tables": sorted(out.glob("*-shot.csv")), "pictures": pictures_of(out)}, following)
