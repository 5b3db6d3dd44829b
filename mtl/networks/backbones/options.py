"""Settings of a forward pass, and where the weights of a network are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtl.metagrad.execution import Execution

LOSS_SCALE = 2.0**10
"""Initial size of cotangents in a float16 network."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a backbone computes features. None of it changes what they mean; see :meth:`Backbone.configure`.

    Args:
        precision: ``torch.bfloat16`` or ``torch.float16`` runs the network, and nothing else, under autocast; None runs
            it as stored. Scale, shift, features and all gradients stay in float32. A network *stored* in bfloat16
            (``load_backbone(..., dtype="bfloat16")``) needs half the memory and no autocast.
        checkpoint_blocks: keep only the inputs of modulated blocks and recompute their activations in the backward
            pass: less memory inside an inner step, a third more time, the same numbers.
        examples_per_chunk: pass so many examples of every task through the network at a time, each chunk recomputed in
            the backward pass: memory no longer grows with the number of examples, a third more time, the same numbers.
            None passes all at once where gradients are wanted, and else as many as 64 pictures of 224 px take memory.
        loss_scale: size of cotangents in a float16 network; gradients are scaled back. Training lowers it after an
            overflow.

    Raises:
        ValueError: for another precision, or fewer than one example per chunk.
    """

    precision: torch.dtype | None = None
    checkpoint_blocks: bool = False
    examples_per_chunk: int | None = None
    loss_scale: float = LOSS_SCALE

    def __post_init__(self) -> None:
        if self.precision not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"precision={self.precision}: expected torch.bfloat16, torch.float16, or None to run it as stored"
            )
        if self.examples_per_chunk is not None and self.examples_per_chunk < 1:
            raise ValueError(
                f"examples_per_chunk={self.examples_per_chunk}: expected at least 1, or None to pass all at once"
            )


@dataclass(frozen=True)
class Placement:
    """Weights that are in more than one place.

    Args:
        device: where inputs go.
        execution: the constraints that this puts on differentiation.
    """

    device: torch.device
    execution: Execution
