"""What all processes of a run must agree on."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtl.fewshot.training.config import TrainingConfig
from mtl.metagrad.execution import Execution

T = TypeVar("T")


def of_main(value: T) -> T:
    """The main process's value, in every process. All of them must call this, whatever they give."""
    [shared] = broadcast_object_list([value])
    return shared


def precision_of(accelerator: Accelerator, now: torch.dtype | None) -> torch.dtype | None:
    """The precision of the frozen network that Accelerate was asked for; ``now`` where it was asked for none.

    Accelerate's own autocast and loss scaler are not used: they know nothing of the gradient of a gradient.

    Raises:
        ValueError: for a precision that the network cannot be run in.
    """
    known = {"no": now, "bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision not in known:
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r}: expected one of {sorted(known)}; "
            "for weights in fewer bits, load the backbone with quantization='8bit' or '4bit'"
        )
    return known[accelerator.mixed_precision]


def chunk_size(config: TrainingConfig, execution: Execution, accelerator: Accelerator) -> int:
    """Tasks in one forward pass. Processes that walk in step take one task at a time, and as many as each other.

    Raises:
        ValueError: when tasks do not divide evenly over such processes.
    """
    if not execution.lockstep:
        return config.tasks_per_chunk
    for name in ("tasks_per_step", "validation_tasks"):
        count = getattr(config, name)
        if count % accelerator.num_processes:
            raise ValueError(
                f"TrainingConfig({name}={count}) on {accelerator.num_processes} processes that share one sharded "
                f"backbone: expected a multiple of {accelerator.num_processes}, since all pass through it together"
            )
    return 1
