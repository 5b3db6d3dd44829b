"""Run by test_placement.py in two processes: ``shard_decoder.py FOLDER``. A sharded decoder and a whole one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from networks import batch, load
from torch import Tensor

import mtl

LENGTH, VOCABULARY = 8, 50
GOING_BY_VALUE = ("adaptive", "implicit")  # estimators whose number of pulls depends on what they meet


class Sentences:
    """Classes are words that recur; episode ``i`` is a function of ``i`` alone."""

    def __init__(self, ways: int = 3, shots: int = 2) -> None:
        self.ways, self.shots = ways, shots

    def sample(self, index: int) -> mtl.Episode:
        g = torch.Generator().manual_seed(index)
        words = torch.randint(VOCABULARY, (self.ways, LENGTH), generator=g)
        labels = torch.arange(self.ways).repeat(self.shots)

        def examples() -> mtl.Examples:
            noise = torch.randint(VOCABULARY, (len(labels), LENGTH), generator=g)
            ids = torch.where(torch.rand(noise.shape, generator=g) < 0.5, words[labels], noise)
            return mtl.Examples({"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}, labels[None])

        return mtl.Episode(examples(), examples(), self.ways)


def learner_of(backbone: mtl.Backbone, step_size: float = 2.0, **options) -> mtl.MetaLearner:
    torch.manual_seed(0)
    generator = mtl.SupportConditioned(backbone.sites, backbone.width, step_size, hidden=16)
    return mtl.MetaLearner(backbone, generator, inner_steps=4, **options)


def gradient(learner: mtl.MetaLearner, episode: mtl.Episode) -> tuple[Tensor, mtl.metagrad.MetaGradient]:
    meta = {k: v.detach() for k, v in learner.generator(learner.view(episode.support)).items()}
    result = learner.meta_gradient(episode, meta)
    return torch.cat([g.flatten() for g in result.grads.values()]), result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2, f"{accelerator.num_processes} processes, expected 2"
    rank = accelerator.process_index
    (folder / f"config-{rank}").mkdir(parents=True)
    estimators = {
        # So strict that one process alone would take shorter sub-steps, the other not: they have to agree.
        "adaptive": mtl.Windowed(4, pull=mtl.metagrad.FiniteDifference(0.05), tau=0.04),
        "rematerialised": mtl.Rematerialised(mtl.metagrad.FiniteDifference(0.05)),
        "implicit": mtl.metagrad.ImplicitMAML(iterations=3, pull=mtl.metagrad.FiniteDifference(0.05)),
        "first-order": mtl.FirstOrder(),
    }
    episode = Sentences().sample(rank)  # each process has a task, and so a curvature, of its own
    found: dict[str, list] = {}
    for last_k in (None, 1):
        for sharded in (False, True):
            backbone = load("llama", folder / f"config-{rank}", last_k=last_k)
            if sharded:
                mtl.shard(backbone, accelerator)
                shards = [p.to_local().numel() for p in backbone.model.parameters()]  # type: ignore[attr-defined]
                found["share"] = [sum(shards) / sum(p.numel() for p in backbone.model.parameters())]
            for checkpointed in (False, True):
                backbone.configure(checkpoint_blocks=checkpointed, examples_per_chunk=4 if checkpointed else None)
                for name, estimator in estimators.items():
                    flat, result = gradient(learner_of(backbone, estimator=estimator), episode)
                    found.setdefault(f"{name}, last_k {last_k}", []).append((flat, result.pulls))
    for name in ("test_resnet", "test_convnext", "bert"):  # the first works in place on what is modulated
        whole, sharded = (load(name, folder / f"config-{rank}") for _ in range(2))
        mtl.shard(sharded, accelerator)
        found[f"gradient of {name}"] = [(_plain_gradient(b), 0) for b in (whole, sharded)]
    found["refusal"] = [_refusal(backbone, episode)]
    torch.save(found, folder / f"gradients-{rank}.pt")
    config = mtl.TrainingConfig(steps=2, tasks_per_step=4, warmup=0, validate_every=2, validation_tasks=4)
    for name in ("whole", "sharded"):
        backbone = load("llama", folder / f"config-{rank}")
        backbone = mtl.shard(backbone, accelerator) if name == "sharded" else backbone
        estimator = mtl.Windowed(2, pull="finite-difference")
        mtl.train(
            learner_of(backbone, 0.5, estimator=estimator), Sentences(), Sentences(), config, folder / name, accelerator
        )


def _plain_gradient(backbone: mtl.Backbone) -> Tensor:
    inputs: Any = batch(backbone, 1, 4)
    identity = mtl.networks.Modulation.identity(1, backbone.modulation_width)
    scale = identity.scale.requires_grad_()
    return torch.autograd.grad(backbone(inputs, mtl.networks.Modulation(scale, identity.shift)).pow(3).sum(), scale)[0]


def _refusal(backbone: mtl.Backbone, episode: mtl.Episode) -> str:
    try:
        gradient(learner_of(backbone), episode)
    except RuntimeError as e:
        return str(e)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
