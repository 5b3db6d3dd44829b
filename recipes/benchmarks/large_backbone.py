"""One meta-step of a large backbone, to see that it fits: seconds and peak memory, on whatever device there is.

    python recipes/benchmarks/large_backbone.py   # ViT-L/16 at 224 px, random weights
    python recipes/benchmarks/large_backbone.py --last-k 24 --checkpoint-blocks   # every block modulated; for a GPU
    python recipes/benchmarks/large_backbone.py --backbone vit_giant_patch14_dinov2 --examples-per-chunk 5

Random weights cost what trained ones do. Weights are stored in bfloat16 and second derivatives are finite differences,
so fused attention and checkpointing are in use. Four minutes and 1.7 GiB on one core with bfloat16 instructions, more
than an hour on one without. `python -m mtl.planning` tells memory beforehand; docs/performance.md has the figures.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from command import Checked, Count, Folder, Positive, TwoOrMore, answer
from measuring import device_of, resident_mib, timed

import mtl
from mtl.metagrad import EstimatorOptions, FiniteDifference, make_estimator
from mtl.metagrad.options import option_names
from mtl.tools.files import write_whole
from mtl.tools.memory import LiveBytes
from mtl.tools.progress import ProgressBar

GIB = 2**30


@dataclass(frozen=True)
class Config(Checked):
    backbone: str = "vit_large_patch16_224"  # name of a timm network
    pretrained: bool = False  # load trained weights; random ones cost the same
    precision: Literal["stored-bf16", "bf16", "fp16", "fp32"] = "stored-bf16"  # bf16 and fp16 are autocast
    sites: Literal["norm", "ssf"] = "norm"  # which layers are modulated
    last_k: Count | None = 1  # modulate only the last k blocks; all when None
    checkpoint_blocks: bool = False  # recompute activations of modulated blocks in the backward pass
    examples_per_chunk: Count | None = 5  # examples in one forward pass
    ways: TwoOrMore = 5  # classes
    shots: Count = 5  # support examples per class
    queries: Count = 5  # query examples per class
    inner_steps: Count = 10  # inner steps, K
    estimator: Annotated[EstimatorOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=EstimatorOptions)
    radius: Positive = 0.1  # radius of finite differences, which are used unless --pull names something else
    threads: Count = 1  # CPU threads
    out: Folder = "runs/large_backbone"  # folder for result.json


def main(config: Config) -> dict[str, Any]:
    torch.set_num_threads(config.threads)
    device = device_of("")
    learner, task = workload(config, device)
    before = resident_mib() / 1024
    with LiveBytes() as counter:
        result = meta_step(learner, task)
    if device.type == "cuda":  # once more: the first time includes loading kernels, and counting takes time
        torch.cuda.reset_peak_memory_stats()
        result = meta_step(learner, task)
    result |= {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "weights_gib": sum(p.nbytes for p in learner.backbone.parameters()) / GIB,
        "allocated_gib": counter.peak / GIB,
        "resident_before_gib": before,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else resident_mib() / 1024,
    }
    facts = json.dumps({"config": asdict(config)} | result, indent=2)
    write_whole(Path(config.out) / "result.json", facts.encode())
    print(json.dumps(result, indent=2))
    return result


def workload(config: Config, device: torch.device) -> tuple[mtl.MetaLearner, mtl.Episode]:
    """The learner with random weights, made on the device, and a task."""
    options: dict[str, Any] = {"dtype": "bfloat16"} if config.precision == "stored-bf16" else {}
    with device:  # a CPU would take most of a minute to draw the weights of a large network
        backbone = mtl.load_backbone(
            config.backbone, pretrained=config.pretrained, sites=config.sites, last_k=config.last_k, **options
        )
    backbone.configure(
        precision={"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision),
        checkpoint_blocks=config.checkpoint_blocks,
        examples_per_chunk=config.examples_per_chunk,
    )
    torch.manual_seed(0)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, step_size=0.01, gate=0.1)
    learner = mtl.MetaLearner(backbone, generator, inner_steps=config.inner_steps, estimator=estimator_of(config))
    return learner.to(device), episode(config, backbone).to(device)


def episode(config: Config, backbone: mtl.Backbone) -> mtl.Episode:
    def examples(each: int) -> mtl.Examples:
        inputs = backbone.example_inputs(config.ways * each)
        return mtl.Examples(inputs.with_task_axis(), torch.arange(config.ways).repeat(each)[None])

    return mtl.Episode(examples(config.shots), examples(config.queries), config.ways)


def estimator_of(config: Config) -> mtl.metagrad.AbstractEstimator:
    """As asked for; with finite differences of the given radius where it has a choice."""
    options = config.estimator
    if options.pull is None and "pull" in option_names(options.estimator):
        given = {k: v for k, v in asdict(options).items() if v is not None and k != "estimator"}
        return make_estimator(options.estimator, **given | {"pull": FiniteDifference(config.radius)})
    return options.build()


def meta_step(learner: mtl.MetaLearner, task: mtl.Episode) -> dict[str, Any]:
    """An outer step of training with one task, up to the gradient of the generator's weights."""
    learner.generator.zero_grad()
    with ProgressBar(desc="passes through the network", unit="pass") as progress:
        handle = learner.backbone.register_forward_hook(lambda *_: progress.update() and None)
        seconds, result = timed(lambda: learner.meta_step(task))
        handle.remove()
    norms = [p.grad.norm() for p in learner.generator.parameters() if p.grad is not None]
    return {
        "seconds": seconds,
        "loss": float(result.losses.mean()),
        "pulls": result.pulls,
        "gradient_norm": float(torch.stack(norms).norm()),
    }


if __name__ == "__main__":
    answer(main, Config)
