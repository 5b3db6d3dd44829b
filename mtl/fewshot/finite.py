"""Whose fault it is where an answer is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mtl.episode import Examples, Inputs
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone


def check_answers(predicted: Tensor, inputs: Inputs, support: Examples, weights: Tensors, backbone: Backbone) -> Tensor:
    """The predictions, where there is one for every example.

    Args:
        predicted: ``(tasks, m)`` of :func:`mtl.fewshot.model.most_likely`, which are -1 where a logit is not finite.
        inputs: what they were asked for, ``(tasks, m, ...)``.
        support: what was adapted to.
        weights: the adapted ones.

    Raises:
        ValueError: naming the example of the inputs or of the support set that is not finite, or else the inner loop.
    """
    if not bool((missing := predicted < 0).any()):
        return predicted
    task, example = missing.nonzero()[0].tolist()
    raise ValueError(_why(task, example, inputs, support, weights, backbone))


def _why(task: int, example: int, inputs: Inputs, support: Examples, weights: Tensors, backbone: Backbone) -> str:
    for i in range(support.inputs.shape[1]):
        if not _finite(t[task, i] for t in support.inputs):
            return f"example {i} of the support set of task {task} holds NaN or infinity; leave it out, and adapt again"
    if not _finite(v[task] for v in weights.values()):
        way_out = "adapt with fewer steps=, or a generator trained with a smaller step size"
        return f"the inner loop of task {task} ran away: its weights hold NaN or infinity; {way_out}"
    return _why_of_input(task, example, inputs, backbone)


def check_logits(logits: Tensor, inputs: Inputs, backbone: Backbone) -> Tensor:
    """The logits ``(n, ways)`` of inputs ``(1, n, ...)`` of one task, where all are finite.

    Raises:
        ValueError: naming the input that is not, or else the network.
    """
    if bool((missing := ~logits.isfinite().all(-1)).any()):
        raise ValueError(_why_of_input(0, int(missing.nonzero()[0]), inputs, backbone))
    return logits


def _why_of_input(task: int, example: int, inputs: Inputs, backbone: Backbone) -> str:
    if not _finite(t[task, example] for t in inputs):
        return f"input {example} of task {task} holds NaN or infinity; leave it out"
    way_out = "run it in bfloat16 or float32" if backbone.low_precision else "check its weights and the preprocessing"
    return f"{backbone.name} makes NaN or infinity of input {example} of task {task}, which is finite; {way_out}"


def _finite(values: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in values)
