"""Inputs together with the outputs of their frozen prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.episode import PREFIX, Inputs
from mtl.networks.backbones.stored import Stored

_MASK = "attention_mask"
LEVELS = f"{PREFIX}.levels"
"""Name of the levels of the readout that end below the first site."""
VALUES_PER_PASS = 64 * 3 * 224 * 224
"""Numbers of the pictures that pass through a network at a time, gradients aside: 64 of 224 px, or their like."""
TOKENS_PER_PASS = 64 * 512
"""Tokens that do: 64 texts of 512, or their like."""


@dataclass(frozen=True)
class Prepared:
    """Inputs and the outputs of their frozen prefix, from :meth:`Backbone.prepare`; everything takes it as inputs.

    Args:
        inputs: as given, ``(tasks, n, ...)``.
        stored: outputs of the prefix; None where it is not recorded.
    """

    inputs: Inputs
    stored: Stored | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Tasks and examples of each."""
        return self.inputs.shape[0], self.inputs.shape[1]

    def take(self, examples: Tensor) -> Prepared:
        """Some examples of every task: ``examples`` are indices along the second axis, on any device."""
        tasks, n = self.shape
        inputs = self.inputs.take(examples, 1)
        if self.stored is None:
            return Prepared(inputs)
        rows = n * torch.arange(tasks, device="cpu").unsqueeze(1) + examples.cpu()
        return Prepared(inputs, self.stored.take(rows.flatten()))

    def regroup(self, examples: Tensor) -> Prepared:
        """Examples in other tasks: ``examples`` ``(tasks, n)`` are indices among the examples of all tasks here."""
        found = self.inputs.flatten().take(examples.flatten()).unflatten(len(examples))
        return Prepared(found, self.stored and self.stored.take(examples.flatten().cpu()))

    def split(self, size: int | None) -> Iterator[Prepared]:
        """Pieces of at most ``size`` examples of every task, each made when it is asked for; None is a single piece."""
        n = self.shape[1]
        if size is None or n <= size:
            return iter([self])
        # On the CPU whatever the default device is: the meta device has no indices to give.
        return map(self.take, torch.arange(n, device="cpu").split(size))

    @staticmethod
    def join(pieces: Sequence[Prepared]) -> Prepared:
        """The pieces of :meth:`split`, put together again."""
        first, tasks = pieces[0], pieces[0].shape[0]
        if len(pieces) == 1:
            return first
        inputs = Inputs.cat([p.inputs for p in pieces], 1)
        stored = [p.stored for p in pieces if p.stored is not None]
        return Prepared(inputs, Stored.join(stored, tasks) if stored else None)


def examples_per_pass(inputs: Inputs) -> int | None:
    """How many examples of every task pass through a network at a time where nothing needs them all at once.

    Args:
        inputs: ``(tasks, n, ...)``.

    Returns:
        As many as hold :data:`VALUES_PER_PASS` or :data:`TOKENS_PER_PASS` together; None where that is no question.
    """
    most = []
    for tensor in inputs:
        size = tensor.shape[0] * tensor.shape[2:].numel() if tensor.dim() > 1 else 0
        limit = VALUES_PER_PASS if tensor.is_floating_point() else TOKENS_PER_PASS
        most += [max(1, limit // size)] if size else []
    return min(most, default=None)


def pieces(inputs: Inputs, size: int | None) -> Iterator[Inputs]:
    """Inputs ``(tasks, n, ...)``, at most ``size`` examples of every task at a time; None is all of them."""
    n = 0 if size is None or len(inputs.shape) < 2 else inputs.shape[1]
    if size is None or n <= size:
        yield inputs
        return
    for start in range(0, n, size):
        yield inputs.map(lambda t, start=start: t[:, start : start + size])


def halved(values: Tensor) -> Tensor:
    """On the CPU in float16; in float32 where they exceed its range."""
    values = values.detach().cpu().float()
    half = values.half()
    return half if bool(half.isfinite().all()) else values


def count_of(inputs: Inputs) -> Inputs:
    """Nothing but the number of tasks and examples, where the prefix is all that is needed of images."""
    first = next(iter(inputs))
    return Inputs({PREFIX: first.new_empty(*first.shape[:2], 0)})


def divided(inputs: Inputs) -> tuple[Inputs | None, dict[str, Tensor]]:
    """Inputs of the network, None if there are none, and what came with them of its prefix."""
    own = {k: v for k, v in inputs.tensors.items() if not Inputs.of_prefix(k)}
    return Inputs(own) if own else None, {k: v for k, v in inputs.tensors.items() if k not in own}


def check_like(inputs: Inputs, expected: Inputs, name: str) -> None:
    """Refuse inputs of another kind than a network takes, such as raw pixels in place of preprocessed images.

    Args:
        inputs: ``(n, ...)``.
        expected: an example of what the network takes.
        name: of the network, for the message.

    Raises:
        ValueError: integers in place of floats or the reverse, names in place of one tensor, or images whose channels
            are not where they belong.
    """
    if inputs.named and not expected.named:
        raise ValueError(f"inputs are tensors named {', '.join(inputs.tensors)}: {name} takes one tensor of images")
    for key, found in inputs.tensors.items():
        like = expected.tensors.get(key)
        if like is None or key == _MASK:
            continue
        if found.is_floating_point() != like.is_floating_point():
            kind, what = ("floats", "items") if like.is_floating_point() else ("integers", "texts")
            raise ValueError(
                f"{key or 'inputs'} are {found.dtype}, but {name} takes {kind} as backbone.preprocess({what}) makes "
                "them: pass what that returns"
            )
        if like.dim() == 4 and (found.dim() != 4 or found.shape[1] != like.shape[1]):
            raise ValueError(
                f"images of shape {tuple(found.shape[1:])}: {name} takes ({like.shape[1]}, height, width), as "
                "backbone.preprocess(items) makes them"
            )
