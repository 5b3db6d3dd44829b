"""Settings that all processes of a run must agree on."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtl.fewshot.training.config import TrainingConfig
from mtl.metagrad.execution import Execution

T = TypeVar("T")


def from_main(value: T) -> T:
    """The main process's value, in every process. All must call this; the values of the others are ignored."""
    [shared] = broadcast_object_list([value])
    return shared


def requested_precision(accelerator: Accelerator, now: torch.dtype | None) -> torch.dtype | None:
    """Precision of the frozen network as Accelerate is set up; ``now`` where it has no setting.

    Accelerate's own autocast and loss scaler are not used, because they do not handle the gradient of a gradient.

    Raises:
        ValueError: for any precision other than bf16 and fp16.
    """
    known = {"no": now, "bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision not in known:
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r}: expected one of {sorted(known)}; "
            "for weights in fewer bits, load the backbone with quantization='8bit' or '4bit'"
        )
    return known[accelerator.mixed_precision]


def chunk_size(config: TrainingConfig, execution: Execution, accelerator: Accelerator) -> int:
    """Tasks in one forward pass. Processes in lockstep take one task at a time, and equally many each.

    Raises:
        ValueError: when tasks do not divide evenly over processes in lockstep.
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
