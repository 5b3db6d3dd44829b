"""One adapted task as a module that torch.export can trace: network, modulation and classifiers, nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mtl.episode import Inputs
from mtl.fewshot.adapted_task import AdaptedTask

TEXT_INPUTS = ("input_ids", "attention_mask")
IMAGE_INPUTS = ("images",)


class _Program(nn.Module):
    """Logits of preprocessed inputs, on a copy of the network.

    Args:
        task: on any device.
    """

    def __init__(self, task: AdaptedTask) -> None:
        super().__init__()
        backbone = copy.deepcopy(task.backbone).to("cpu").float()
        # What spares memory and time in training has no place in a program.
        self.backbone = backbone.configure(precision=None, checkpoint_blocks=False)
        self.task = task.to("cpu")

    def logits(self, inputs: Inputs) -> Tensor:
        """``(n, ...)`` to ``(n, ways)``."""
        plain, found = None, []
        for part in self.task.parts:
            if part.modulation is None:
                features = plain = self.backbone.features(inputs) if plain is None else plain
            else:
                with self.backbone.modulator.modulating(part.modulation):
                    features = self.backbone.features(inputs)
            found.append(features)
        return self.task.classify(found)


class ImageProgram(_Program):
    """Of images ``(n, C, H, W)``."""

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(Inputs.of(images))


class TextProgram(_Program):
    """Of tokens ``(n, length)``, as the tokenizer gives them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.logits(Inputs({"input_ids": input_ids, "attention_mask": attention_mask}))


def trace(task: AdaptedTask, inputs: Inputs) -> torch.export.ExportedProgram:
    """The task as a program for any number of examples, and texts of any length that the network takes.

    Args:
        inputs: examples to trace with, ``(n, ...)``.

    Raises:
        ValueError: the code of the network cannot be traced.
    """
    args = arguments(inputs)
    program = TextProgram(task) if inputs.named else ImageProgram(task)
    try:
        return torch.export.export(program.eval(), args, dynamic_shapes=_dynamic(task, inputs))
    except Exception as error:  # whatever the network's code raises under the tracer
        raise ValueError(
            f"{task.backbone.name}: torch.export cannot trace its code ({_first_line(error)}); leave to= out for a "
            "plain checkpoint, or predict with mtl.load_task"
        ) from error


def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
    """Positional arguments of the program, at least three rows of them: a single one would be traced as a constant."""
    few = inputs.to("cpu", torch.float32)
    if few.count < 3:
        few = Inputs.cat([few] * 3)
    if not few.named:
        return (few.tensor,)
    ids = few["input_ids"]
    return ids, few["attention_mask"] if "attention_mask" in few else torch.ones_like(ids)


def names_of(inputs: Inputs) -> tuple[str, ...]:
    """Of the program's arguments."""
    return TEXT_INPUTS if inputs.named else IMAGE_INPUTS


def _dynamic(task: AdaptedTask, inputs: Inputs) -> Any:
    batch = torch.export.Dim.DYNAMIC
    if not inputs.named:
        return ({0: batch},)
    return ({0: batch, 1: batch},) * 2


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
