"""Meta-train a scale-and-shift generator on a frozen backbone and compare it with what people do without one.

    python recipes/few_shot_vision.py                                   # embedded glyphs, offline
    python recipes/few_shot_vision.py --data photos/ --backbone vit_small_patch16_224.dino
    python recipes/few_shot_vision.py --data fashion/ signs/ --label-columns class colour --backbone resnet18.a1_in1k
    accelerate launch recipes/few_shot_vision.py --out runs/mine

Minutes on two cores for the first; docs/results.md says what to expect. The frozen network reads each picture once, at
all its levels. --sites norm also modulates inside it, and --inner-steps trains through gradient steps. Stopped at any
moment, the same command goes on. mtl/cli/training has what this shares with few_shot_text.py: training and comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Folder
from mtl.cli.training import few_shot
from mtl.cli.training.images import draw_episodes, image_tasks
from mtl.cli.training.settings import Settings
from mtl.networks.backbones import EMBEDDED


@dataclass(frozen=True)
class Config(Settings):
    out: Folder = "runs/few_shot_vision"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # class folders, zip, csv, parquet or hub id, one or several; glyphs when not given
    image_column: str | None = None  # column of file names or images, where a table has no usual name for it
    image_folder: str | None = None  # what the file names of a table are relative to; its own folder when not given
    backbone: str = ""  # any timm name, hf/<id> or mtl/<name>; mtl/glyphs, for the glyphs, when not given
    checkpoint: str | None = None  # file of weights for a timm backbone

    @property
    def network(self) -> str:
        return self.backbone or EMBEDDED

    @property
    def suggested(self) -> str:
        return (
            "such as resnet18.a1_in1k, vit_small_patch16_224.dino or, without a download, mtl/efficientnet-lite0 "
            f"({EMBEDDED} knows nothing but letters of 32 pixels)"
        )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        for flag, value in {"--image-column": self.image_column, "--image-folder": self.image_folder}.items():
            if value is not None and not self.data:
                yield f"{flag} is about data of your own: name it with --data"
        if self.cache_dir is not None and not self.data:
            yield f"--cache-dir {self.cache_dir} keeps examples of --data; the embedded glyphs are not kept on disk"


def main(config: Config) -> list[mtl.Comparison]:
    accelerator = few_shot.accelerator_of(config)
    backbone = few_shot.backbone_of(config, accelerator, config.network, checkpoint=config.checkpoint)
    sources = few_shot.Sources.of(maker(config, backbone), config)
    inside = None
    if config.tuned_inside:  # needs the pictures themselves
        pictures = maker(replace(config, sites="norm"), backbone)
        inside = few_shot.tuned_inside(config, accelerator, config.network, pictures, checkpoint=config.checkpoint)
    return few_shot.run(config, backbone, sources, accelerator, draw_episodes, inside)


def maker(config: Config, backbone: mtl.Backbone) -> few_shot.Make:
    """What makes tasks of a part, shots and queries."""
    return image_tasks(config, backbone, image_column=config.image_column, image_folder=config.image_folder)


if __name__ == "__main__":
    answer(main, Config)
