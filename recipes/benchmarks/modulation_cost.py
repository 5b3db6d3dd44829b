"""What scale and shift at every norm cost: the modulated network against the plain one, one task and several at a time.

    python recipes/benchmarks/modulation_cost.py
    python recipes/benchmarks/modulation_cost.py --networks resnet50 --image-size 224 --examples 32

Random weights. Every network reads the same examples three times: plain, with all of them in one task, and divided into
several tasks with a modulation each. The backward pass goes to the scales and shifts; that of the plain network goes to
the weights and biases of the same norms, as in ordinary training of these. Runs alternate, the fastest of each counts;
on a CPU seconds are of this process alone, so that a busy machine matters less. Two minutes on one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command import Checked, Count, Device, Folder, TwoOrMore, answer
from measuring import device_of, timed
from torch import Tensor

import mtl
from mtl.tools.files import write_csv

TEXT = "bert"
Run = Callable[[], object]


@dataclass(frozen=True)
class Config(Checked):
    networks: tuple[str, ...] = ("efficientnet_lite0", "resnet50", "vit_small_patch16_224", TEXT)  # timm names, or bert
    image_size: Count = 64  # side of the images
    length: Count = 16  # tokens of a text
    depth: Count = 12  # blocks of the BERT; it is 64 times as wide
    examples: Count = 100  # examples of a pass, all tasks together
    tasks: TwoOrMore = 8  # tasks of a pass, where there are several; the examples are divided among them
    repeats: Count = 5  # timed runs; the fastest counts
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    out: Folder = "runs/modulation_cost"  # folder for modulation_cost.csv


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    rows: list[dict[str, Any]] = []
    print(f"{'network':24} {'pass':22} {'plain':>9} {'one task':>9} {f'{config.tasks} tasks':>9}")
    for network in config.networks:
        backbone = load(network, config).to(device_of(config.device))
        for what, runs in (
            ("forward", forwards(backbone, config)),
            ("forward and backward", backwards(backbone, config)),
        ):
            seconds = fastest(runs, config.repeats)
            row = {"network": network, "pass": what, "plain seconds": seconds["plain"]}
            rows.append(row | {how: seconds[how] / seconds["plain"] for how in ("one task", "several tasks")})
            print(
                "{network:24} {pass:22} {plain seconds:7.3f} s {one task:9.2f} {several tasks:9.2f}".format(**rows[-1]),
                flush=True,
            )
    write_csv(rows, Path(config.out) / "modulation_cost.csv")
    return rows


def load(network: str, config: Config) -> mtl.Backbone:
    torch.manual_seed(0)
    if network != TEXT:
        size: dict[str, Any] = {"img_size": config.image_size} if "vit" in network else {}
        return mtl.load_backbone(network, pretrained=False, **size)
    folder = Path(config.out) / TEXT
    folder.mkdir(parents=True, exist_ok=True)
    width = 64 * config.depth
    sizes = {"hidden_size": width, "num_attention_heads": config.depth, "intermediate_size": 4 * width}
    (folder / "config.json").write_text(json.dumps({"model_type": TEXT, "num_hidden_layers": config.depth, **sizes}))
    return mtl.load_backbone(str(folder), pretrained=False)


def inputs(backbone: mtl.Backbone, config: Config, tasks: int) -> mtl.Inputs:
    """``(tasks, examples, ...)``, as equally divided as it goes."""
    n = config.examples // tasks
    side = config.image_size
    if backbone.example_inputs(1).named:
        found = mtl.Inputs.of({"input_ids": torch.randint(1000, (tasks, n, config.length))})
    else:
        found = mtl.Inputs.of(torch.randn(tasks, n, 3, side, side))
    return found.to(backbone.device)


def modulation(backbone: mtl.Backbone, tasks: int) -> mtl.networks.Modulation:
    scale, shift = 0.1 * torch.randn(2, tasks, backbone.modulation_width, device=backbone.device)
    return mtl.networks.Modulation(1 + scale, shift)


def forwards(backbone: mtl.Backbone, config: Config) -> dict[str, Run]:
    """Without gradients."""

    def run(tasks: int, modulated: bool) -> Run:
        examples = inputs(backbone, config, tasks)
        given = modulation(backbone, tasks) if modulated else None
        return torch.no_grad()(lambda: backbone(examples, given))

    return {"plain": run(1, False), "one task": run(1, True), "several tasks": run(config.tasks, True)}


def backwards(backbone: mtl.Backbone, config: Config) -> dict[str, Run]:
    """With the gradient of a scalar."""
    norms = [backbone.model.get_submodule(site.name) for site in backbone.sites]
    affine = [p for norm in norms for p in norm.parameters(recurse=False)]
    examples, divided = inputs(backbone, config, 1), inputs(backbone, config, config.tasks)

    def plain() -> None:
        for parameter in affine:
            parameter.requires_grad_()
        try:
            gradient(backbone(examples), affine)
        finally:
            for parameter in affine:
                parameter.requires_grad_(False)

    def run(examples: mtl.Inputs, tasks: int) -> Run:
        given = modulation(backbone, tasks)
        leaves = [given.scale.requires_grad_(), given.shift.requires_grad_()]
        return lambda: gradient(backbone(examples, given), leaves)

    return {"plain": plain, "one task": run(examples, 1), "several tasks": run(divided, config.tasks)}


def gradient(features: Tensor, leaves: Sequence[Tensor]) -> None:
    torch.autograd.grad(features.square().mean(), leaves, allow_unused=True)  # BERT's pooler is not read


def fastest(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Seconds of each; the runs alternate."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(seconds_of(run))
    return {name: min(times) for name, times in found.items()}


def seconds_of(run: Run) -> float:
    if torch.accelerator.is_available():
        return timed(run)[0]
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    answer(main, Config)
