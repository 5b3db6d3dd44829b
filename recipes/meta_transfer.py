r"""Learn what and where to transfer from a frozen network to a small one, by every estimator of the meta-gradient.

    python recipes/meta_transfer.py                                          # embedded letters, offline
    python recipes/meta_transfer.py --data photos/ --source mtl/efficientnet-lite0 --source-size 128 --img-size 64 \
        --views 4 --sides 8 4 2 --target-args '{"stem": 4}' --sizes.pool 10 --training.fixed-total
    python recipes/meta_transfer.py --data photos/ --source resnet34.a1_in1k --target resnet18
    python recipes/meta_transfer.py --training.same-batch --out runs/as_published
    accelerate launch recipes/meta_transfer.py --mixed-precision bf16       # processes share out the runs

The meta-networks act inside the matching loss only, so first-order methods cannot train them at all. Every finished run
is a file in the folder of runs, with its target beside it (a state dict of timm's), and is not done again when the same
command is given; docs/meta-transfer.md reads the tables. Settings are chosen on validation images with a seed of their
own. Three quarters of an hour on one thread of a busy machine for the first command: expect 26 % for all pairs and for
every learned method, 12 % from scratch. docs/meta-transfer.md has the command for photographs: 28 % for all pairs and
for every learned method, 22 % from scratch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import tyro
from accelerate import Accelerator
from assets import pretrain_scans
from helpers import transfer_data, transfer_report
from helpers.source_head import source_head
from helpers.transfer_runs import (
    KEPT,
    SEARCHED,
    SMALL,
    Run,
    Training,
    Workplace,
    candidates,
    methods,
    target_maker,
    target_options,
    train,
)
from safetensors.torch import save_file

import mtl
from mtl.cli.answers import answer, keeping
from mtl.cli.options import Checked, Count, Counts, Folder, OneOf, Positives, Seeds, complaints_of
from mtl.networks.backbones import EMBEDDED
from mtl.tools.files import atomic_write
from mtl.tools.progress import ProgressBar
from mtl.transfer import Source

PRECISIONS = {"no": None, "bf16": torch.bfloat16}
TUNING_SEED = 1000
HEAD = "source, new head"
MethodName = Annotated[str, OneOf((HEAD, *methods(1)))]
MAIN = ("rematerialised", "windowed, adaptive", "windowed, lazy", "fewer, larger steps")
# What may change without making a finished run another one.
LOOSE = {"out", "only", "inner_steps", "main", "seeds", "betas", "inner_lrs", "meta_lrs", "mixed_precision", "threads"}
LOOSE |= {"checkpoint", "search"}  # the weights count, not where they lie; and which candidates, not how many


@dataclass(frozen=True)
class Config(Checked):
    out: Folder = "runs/meta_transfer"  # output folder; run again with the same one to continue
    data: str | None = None  # class folders, csv, parquet or hub id; the embedded letters when not given
    # frozen source: a timm name, hf/<id> or mtl/glyphs, which is trained further unless --checkpoint is given and is
    # the source for the embedded letters
    source: str = ""
    checkpoint: str | None = None  # file of weights for a timm source
    target: str = SMALL  # network to train from random weights: small (four convolutions) or any timm name
    target_args: str = "{}"  # arguments of the target network, as JSON
    stages: Count = 3  # pair the last so many stages of source and target
    only: tuple[MethodName, ...] = ()  # methods by name; all when empty
    inner_steps: Counts = (10, 2, 5, 20)  # virtual steps, K; only --main uses all of them
    main: tuple[MethodName, ...] = MAIN  # methods that run with every number of virtual steps
    seeds: Seeds = (0, 1, 2)  # seeds of weights and minibatches
    betas: Positives = (1.0, 3.0, 10.0, 30.0)  # weights of the matching loss to tune over
    inner_lrs: Positives = (0.01,)  # step sizes of virtual steps to tune over
    meta_lrs: Positives = (0.001, 0.003)  # step sizes of Adam on the meta-networks to tune over
    # weights of pairs to try: "searched pairs" are the best on validation images, "oracle pairs" those on test images
    search: Count = 24
    seen: Annotated[transfer_data.Seen, tyro.conf.OmitArgPrefixes] = field(default_factory=transfer_data.Seen)
    sizes: transfer_data.PartSizes = field(default_factory=transfer_data.PartSizes)  # images per class of each part
    training: Training = field(default_factory=Training)  # training of the target, the same for every method
    mixed_precision: Literal["no", "bf16"] | None = None  # no or bf16; by default what accelerate launch was told
    threads: Count = 1  # CPU threads

    @property
    def network(self) -> str:
        return self.source or EMBEDDED

    def contradictions(self) -> Iterator[str]:
        if self.data is not None and not self.source:
            yield f"--data {self.data}: name the network to transfer from with --source, such as resnet34.a1_in1k"
        window = self.training.window
        if uneven := [k for k in self.inner_steps if k % min(window, k)]:
            yield (
                f"--inner-steps {' '.join(map(str, uneven))}: expected multiples of --training.window {window}, or a "
                "window would reach over the step on the target's own loss"
            )
        if self.target != SMALL and not timm.is_model(self.target):
            yield f"--target {self.target}: expected {SMALL}, or a name out of timm.list_models()"
        yield from complaints_of(lambda: target_options(self.target_args))


def main(config: Config) -> list[dict[str, Any]]:
    """All rows, one per run; the tables and pictures are in the folder."""
    torch.set_num_threads(config.threads)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision={accelerator.mixed_precision!r}: expected no or bf16")
    images = None if config.data is None else transfer_data.opened(config.data, config.sizes)
    backbone = source_of(config, accelerator)
    source = Source(backbone, most=config.stages)
    if images is None:
        data = transfer_data.embedded(config.sizes, source)
    else:
        data = transfer_data.own(images, config.sizes, source, config.seen, Path(config.out))
    make = target_maker(config.target, config.target_args, data.classes, data.images.shape[1])
    place = Workplace(config.training, data, source, make, config.stages, backbone.options.precision)
    bench = Bench(config, place, accelerator)
    with keeping(f"every finished run is in {config.out}: the same command goes on with the next"):
        rows = bench.rows(bench.tuned())
        rows += bench.rows(bench.kept(rows))
    if accelerator.is_main_process:
        transfer_report.write(rows, Path(config.out), source.taps.names, config.inner_steps[0])
    accelerator.end_training()
    return rows


def source_of(config: Config, accelerator: Accelerator) -> mtl.Backbone:
    checkpoint = config.checkpoint
    if checkpoint is None and config.network == EMBEDDED:
        with accelerator.main_process_first():
            checkpoint = str(pretrain_scans.main(pretrain_scans.Config()))
    backbone = mtl.load_backbone(config.network, checkpoint=checkpoint, **config.seen.of_source)
    return backbone.to(accelerator.device).configure(precision=PRECISIONS[accelerator.mixed_precision])


@dataclass(frozen=True)
class Bench:
    """Where runs are done, each once, whoever asks and however often."""

    config: Config
    place: Workplace
    accelerator: Accelerator

    def rows(self, runs: list[Run]) -> list[dict[str, Any]]:
        """Do what is not done yet, this process its share, and read them all."""
        mine = runs[self.accelerator.process_index :: self.accelerator.num_processes]
        todo = [r for r in mine if not self._file(r).is_file()]
        for run in ProgressBar(todo, desc="runs", show=bool(todo)):
            self._do(run)
        self.accelerator.wait_for_everyone()
        return [json.loads(self._file(r).read_text()) for r in runs]

    def tuned(self) -> list[Run]:
        """The runs of the experiment, with the settings that are best on validation images."""
        c, table = self.config, methods(self.config.training.window)
        wanted = [n for n in (HEAD, *table) if (not c.only or n in c.only) and not n.endswith(KEPT)]
        plain = Run("", 0, TUNING_SEED)
        asked = {table[n].regulariser for n in wanted if n != HEAD}
        asked |= {"all"} if asked & {"learned", "given"} else set()  # untrained meta-networks are all pairs alike
        betas = {"none": plain}
        for regulariser, name in {"last": "last stage", "all": "all pairs", "attention": "attention transfer"}.items():
            if regulariser in asked:
                betas[regulariser] = self._best([replace(plain, method=name, beta=b) for b in c.betas])
        for name in (n for n in wanted if n in SEARCHED):
            tried = candidates(c.stages, c.search, TUNING_SEED)
            runs = [replace(betas["all"], method="searched pairs", pairs=p) for p in tried]
            betas[name] = self._best(runs, SEARCHED[name])
        if "learned" in asked:
            start = replace(betas["all"], method="rematerialised", inner_steps=c.inner_steps[0])
            lower = [b for b in c.betas if b < start.beta and not c.training.fixed_total]  # weights can raise the total
            settings = product((start.beta, *lower[-1:]), c.inner_lrs, c.meta_lrs)
            grid = [replace(start, beta=b, inner_lr=i, meta_lr=m) for b, i, m in settings]
            betas["learned"] = self._best(grid)
        runs = []  # seed by seed, so that whatever else the machine does falls on all methods alike
        for i, (k, seed) in enumerate(product(c.inner_steps, c.seeds)):
            for name in wanted:
                learned = name != HEAD and table[name].regulariser == "learned"
                if i >= len(c.seeds) and not (learned and name in c.main):
                    continue
                best = betas.get(name) or betas["none" if name == HEAD else table[name].regulariser]
                runs.append(replace(best, method=name, inner_steps=k if learned else 0, seed=seed))
        return runs

    def kept(self, rows: list[dict[str, Any]]) -> list[Run]:
        """Runs of new targets with what was learned, at the first K."""
        names = [n for n in methods(1) if n.endswith(KEPT) and (not self.config.only or n in self.config.only)]
        learned = [r for r in rows if r["method"] + KEPT in names and r["inner_steps"] == self.config.inner_steps[0]]
        return [
            Run(r["method"] + KEPT, 0, r["seed"], r["beta"], pairs=tuple(w for stage in r["where"] for w in stage))
            for r in learned
        ]

    def _best(self, runs: list[Run], by: str = "validation") -> Run:
        rows = self.rows(runs) if len(runs) > 1 else [{by: 0.0}]
        return max(zip(runs, rows, strict=True), key=lambda pair: pair[1][by])[0]

    def _do(self, run: Run) -> None:
        file = self._file(run)
        if run.method == HEAD:
            row = source_head(self.place, run.seed)
        else:
            row, network = train(run, self.place)
            weights = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
            with atomic_write(file.with_suffix(".safetensors")) as draft:
                save_file(weights, draft)
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(row))

    def _file(self, run: Run) -> Path:
        """A run with other settings is another file."""
        facts = asdict(self.config) | {"run": asdict(run), "precision": self.accelerator.mixed_precision}
        facts |= {"source": self.config.network, "weights": self.place.source.backbone.fingerprint()}
        facts = {k: v for k, v in facts.items() if k not in LOOSE}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        words = "".join(c if c.isalnum() else "-" for c in run.method)
        return Path(self.config.out) / "runs" / f"{words}-K{run.inner_steps}-seed{run.seed}-{key}.json"


if __name__ == "__main__":
    answer(main, Config)
