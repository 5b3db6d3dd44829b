"""Fine-tuning as it is done today: at the best of several rates, by labels set aside, and once more on all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import mtl
from mtl.episode import Inputs
from mtl.fewshot import Method, Setup
from mtl.fewshot.baselines.fine_tuning import device_of, fine_tune
from mtl.fewshot.baselines.methods import one_by_one
from mtl.metagrad.tensors import Tensors

NINE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
VALIDATION = 0.2  # share of the labels of a class that a sweep sets aside


def swept(setup: Setup, make: Callable[[Setup, float], Method], rates: Sequence[float]) -> Method:
    """A fine-tuned method at the rate that is best on labels set aside, task by task.

    A method is made when its turn comes: LoRA's holds a copy of the network.
    """
    first = make(setup, rates[0])

    def logits(episode: mtl.Episode) -> Tensor:
        return torch.cat([alone(episode[t : t + 1]) for t in range(episode.tasks)])

    def alone(episode: mtl.Episode) -> Tensor:
        inner = set_aside(episode)
        best = rates[len(rates) // 2]
        if inner is not None:
            right = [(make(setup, rate)(inner) == inner.query.labels).float().mean() for rate in rates]
            best = rates[int(torch.stack(right).argmax())]
        answer = make(setup, best).logits
        assert answer is not None
        return answer(episode)

    name = f"{first.name}, best of {len(rates)} rates"
    identity = lambda: {"kind": "swept", "rates": list(rates), "one": _identity(first)}  # noqa: E731
    return Method.of_logits(name, logits, first.adapted_values, identity=identity)


def _identity(method: Method) -> dict[str, Any]:
    return {} if method.identity is None else dict(method.identity())


def set_aside(episode: mtl.Episode) -> mtl.Episode | None:
    """Some labels of each class of a single task as queries of the rest; None where a class has but one."""
    labels = episode.support.labels[0]
    out = torch.zeros_like(labels, dtype=torch.bool)
    for c in range(episode.ways):
        places = (labels == c).nonzero().flatten()
        if len(places) < 2:
            return None
        out[places[: max(1, round(VALIDATION * len(places)))]] = True
    part = lambda keep: mtl.Examples(episode.support.inputs.take(keep.nonzero().flatten(), 1), labels[keep][None])  # noqa: E731
    return mtl.Episode(part(~out), part(out), episode.ways)


def last_block(setup: Setup, lr: float) -> Method:
    """All weights above the frozen part of a network, task by task, with a cosine head. On the last level.

    Args:
        setup: of a backbone whose first site says where the frozen part ends.
    """
    backbone, last = setup.backbone, setup.last
    start = above_the_prefix(backbone)

    def features(weights: Tensors, inputs: Any) -> Tensor:
        return torch.func.functional_call(backbone, {k: weights[k] for k in start}, (inputs,))[..., last].float()

    def logits(episode: mtl.Episode) -> Tensor:
        episode = episode.to(device_of(backbone))
        return fine_tune(episode, start, features, lr, setup.steps, prepare=backbone.prepare)

    count = sum(p.numel() for p in start.values())
    values = lambda ways: count + ways * setup.levels[-1]  # noqa: E731
    return setup.method(f"weights of the last block, {setup.steps} steps", one_by_one(logits), values)


def above_the_prefix(backbone: mtl.Backbone) -> Tensors:
    """Those weights of the network by name that its features depend on once the prefix is computed."""
    weights = {f"model.{k}": p.detach().clone().requires_grad_() for k, p in backbone.model.named_parameters()}
    example = Inputs.of(backbone.example_inputs(2)).with_task_axis()
    found = torch.func.functional_call(backbone, weights, (backbone.prepare(example),))
    grads = torch.autograd.grad(found.sum(), list(weights.values()), allow_unused=True)
    return {k: w.detach() for (k, w), g in zip(weights.items(), grads, strict=True) if g is not None}
