"""Meta-train a generator on a frozen network, and compare it with what people do without one.

    mtl train                                                                       # embedded glyphs, offline
    mtl train --data photos/ --backbone vit_small_patch16_224.dino --out runs/photos
    mtl train --data clothes signs --label-columns class colour --backbone resnet18.a1_in1k
    mtl train --data clothes signs --label-columns class colour --group-families 2 --backbone resnet18.a1_in1k
    mtl train --data tickets.csv --text-column body --backbone mtl/minilm
    accelerate launch -m mtl train --data photos/ --backbone resnet18.a1_in1k       # several processes

What the network reads decides whether data are images or texts. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

import mtl
from mtl.cli.commands.closing import closing, command, pictures_of
from mtl.cli.commands.items import check_columns, reads_images
from mtl.cli.options import Count, Folder
from mtl.cli.training import few_shot
from mtl.cli.training.family_groups import run_groups
from mtl.cli.training.images import draw_episodes, image_tasks
from mtl.cli.training.questions import are_asked
from mtl.cli.training.settings import Settings
from mtl.cli.training.texts import text_tasks, write_episodes
from mtl.networks.backbones import EMBEDDED


@dataclass(frozen=True)
class Config(Settings):
    out: Folder = "runs/train"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # class folders, csv, jsonl, parquet, zip or hub id; embedded tasks when not given
    image_column: str | None = None  # column of file names or images, where a table has no usual name for it
    image_folder: str | None = None  # what the file names of a table are relative to; its own folder when not given
    text_column: str | None = None  # column of texts, where a table has no usual name for it
    backbone: str = ""  # any timm name, hf/<id>, folder or mtl/<name>; mtl/glyphs, for the glyphs, when not given
    checkpoint: str | None = None  # file of weights for a timm backbone
    pooling: str | None = None  # mean, cls or last; the network's own when not given
    max_length: Count | None = None  # tokens that are read of a text; as many as the network takes when not given
    group_families: Count | Literal["auto"] | None = None  # a generator each for so many groups of label columns

    @property
    def network(self) -> str:
        return self.backbone or EMBEDDED

    @property
    def suggested(self) -> str:
        return (
            "such as resnet18.a1_in1k for images or mtl/minilm for texts; without a download mtl/efficientnet-lite0 "
            f"({EMBEDDED} knows nothing but letters of 32 pixels)"
        )

    @property
    def load_options(self) -> dict[str, Any]:
        """Of :func:`mtl.load_backbone`."""
        options = {"checkpoint": self.checkpoint, "pooling": self.pooling, "max_length": self.max_length}
        return {name: value for name, value in options.items() if value is not None}

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        columns = {"--image-column": self.image_column, "--image-folder": self.image_folder}
        for flag, value in (columns | {"--text-column": self.text_column}).items():
            if value is not None and not self.data:
                yield f"{flag} {value} is about data of your own: name it with --data"
        if self.group_families is not None and not are_asked(self.data, self.questions):
            yield f"--group-families {self.group_families} needs several --data or --label-columns, which it groups"


def main(config: Config) -> list[mtl.Comparison]:
    accelerator = few_shot.accelerator_of(config)
    backbone = few_shot.backbone_of(config, accelerator, config.network, **config.load_options)
    make, inside = maker(config, backbone), None
    if config.tuned_inside:  # needs the images or texts themselves
        raw = maker(replace(config, sites="norm"), backbone)
        inside = few_shot.tuned_inside(config, accelerator, config.network, raw, **config.load_options)
    draw = draw_episodes if reads_images(backbone) else write_episodes

    def run(own: Config, make: few_shot.Make, accelerator: Accelerator) -> list[mtl.Comparison]:
        own = replace(own, group_families=None)
        return few_shot.run(own, backbone, few_shot.Sources.of(make, own), accelerator, draw, inside)

    if config.group_families is None:
        found = run(config, make, accelerator)
    else:
        by_group = run_groups(config, config.group_families, backbone, make, accelerator, run)
        found = [table for tables in by_group.values() for table in tables]
    if accelerator.is_main_process:
        close(config)
    return found


def maker(config: Config, backbone: mtl.Backbone) -> few_shot.Make:
    """What makes tasks of a part, shots and queries, of images or of texts."""
    check_columns(backbone, text_column=config.text_column, image_column=config.image_column)
    if reads_images(backbone):
        return image_tasks(config, backbone, image_column=config.image_column, image_folder=config.image_folder)
    return text_tasks(config, backbone, text_column=config.text_column)


def close(config: Config) -> None:
    """Where the generator, tables and pictures are, and the command that uses the generator."""
    out = Path(config.out)
    generator = out if config.group_families else out / config.generator / "final"
    tables = [*out.glob("groups.csv"), *sorted(out.glob("*-shot.csv")), *sorted(out.glob("group-*/*-shot.csv"))]
    closing(
        {"generator": generator, "tables": tables, "pictures": pictures_of(out)},
        [command("mtl", "adapt", "--generator", generator, "--data", "LABELLED")],
    )
