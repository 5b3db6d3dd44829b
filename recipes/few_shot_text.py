"""Meta-train a scale-and-shift generator on a frozen text encoder and compare it with what people do without one.

    python recipes/few_shot_text.py                                    # embedded docstrings and encoder, offline
    python recipes/few_shot_text.py --backbone mtl/minilm --last-k 1 --shots 5
    python recipes/few_shot_text.py --data reviews.csv --text-column review --label-columns topic --backbone mtl/minilm
    python recipes/few_shot_text.py --baselines logistic ridge lora ia3      # LoRA and IA3: pip install -e ".[text]"

The tasks of the first two: which module of Python's standard library is a docstring from, its names masked? Without
--backbone a small encoder is pretrained first, on the training modules' text: expect about 63 % at 5-way 5-shot, and
six minutes on one core. docs/results-text.md has the measured tables.
Stopped at any moment, the same command goes on. mtl/cli/training has what this shares with few_shot_vision.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from assets import pretrain_docstrings

import mtl
from mtl.cli.answers import answer
from mtl.cli.options import Count, CountOrZero, Distinct, Folder, OneOf, Positive, TwoOrMore
from mtl.cli.training import few_shot
from mtl.cli.training.settings import Generator, Head, Settings
from mtl.cli.training.texts import text_tasks, write_episodes
from mtl.data.embedded.docstring_tasks import FAMILIES


@dataclass(frozen=True)
class Config(Settings):
    out: Folder = "runs/few_shot_text"  # output folder; run again with the same one to continue
    data: tuple[str, ...] = ()  # csv, jsonl(.gz), parquet, folder of .txt or hub id; docstrings when not given
    text_column: str | None = None  # column of texts, where the table has no usual name for it
    backbone: str = ""  # mtl/minilm, hf/<id> or a folder; a small encoder, pretrained now, when not given
    encoder: Folder = "runs/docstring_encoder"  # where that small encoder is kept
    pooling: str | None = None  # mean, cls or last; else the own one of the network, mean of encoders, last of decoders
    max_length: Count = 32  # tokens that are read of a text
    levels: Literal["last", "all"] = "last"  # features: the network's own, or mean and deviation of all its layers
    sites: Literal["none", "norm", "ssf"] = "norm"  # modulated inside: nothing, normalisations, or linear layers too
    generator: Generator = "dense"  # channelwise: one small network for all channels
    head: Head = "ridge"  # how features become logits
    inner_steps: CountOrZero = 5  # gradient steps per task
    step_size: Positive = 0.1  # where the learned inner step sizes start
    warm_steps: CountOrZero = 60  # outer steps without inner loop (cheap), before; more learn few classes by heart
    steps: CountOrZero = 20  # outer steps through the inner loop
    tasks_per_step: Count = 8  # tasks per outer step; half as many through the inner loop
    outer_lr: Positive = 1e-3  # of the generator; a quarter of it through the inner loop
    test_episodes: TwoOrMore = 48  # per number of shots; 600 is the field's habit
    # kinds of docstring tasks to train on; tested on modules
    families: Annotated[tuple[Annotated[str, OneOf(FAMILIES)], ...], Distinct()] = FAMILIES

    @property
    def suggested(self) -> str:
        return "such as mtl/minilm, hf/<id> or a folder (the small encoder knows nothing but docstrings of Python)"

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.text_column is not None and not self.data:
            yield f"--text-column {self.text_column} is about data of your own: name it with --data"
        if self.data and self.families != FAMILIES:
            yield f"--families {' '.join(self.families)} is about the embedded docstrings, not about --data"


def main(config: Config) -> list[mtl.Comparison]:
    accelerator = few_shot.accelerator_of(config)
    with accelerator.main_process_first():  # one process makes the small encoder, the others find it
        config = config if config.backbone else replace(config, backbone=str(small_encoder(config)))
    name = str(Path(config.backbone).resolve()) if Path(config.backbone).is_dir() else config.backbone
    backbone = few_shot.backbone_of(config, accelerator, name, pooling=config.pooling, max_length=config.max_length)
    sources = few_shot.Sources.of(maker(config, backbone), config)
    return few_shot.run(config, backbone, sources, accelerator, write_episodes)


def small_encoder(config: Config) -> Path:
    return pretrain_docstrings.main(pretrain_docstrings.Config(out=config.encoder, seed=config.seed))


def maker(config: Config, backbone: mtl.Backbone) -> few_shot.Make:
    """What makes tasks of a part, shots and queries."""
    return text_tasks(config, backbone, text_column=config.text_column, families=config.families)


if __name__ == "__main__":
    answer(main, Config)
