"""Options of the planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mtl.networks.modulation import SiteKind

Precision = Literal["fp32", "bf16", "bf16-stored"]


@dataclass(frozen=True)
class PlanOptions:
    """Planner options: network, size of the episodes, and available memory."""

    backbone: str  # a timm name, hf/<id>, a local folder with a config.json, llama-1b or llama-8b
    ways: int = 5  # classes per task
    shots: int = 5  # support examples per class
    queries: int = 5  # query examples per class
    inner_steps: int = 5  # steps of the inner loop, at least 1
    window: int = 5  # inner steps per window, and of the truncation
    tasks_per_chunk: int = 1  # tasks in one forward pass
    image_size: int | None = None  # pixels; by default the network's own
    text_length: int = 128  # tokens per text
    sites: SiteKind = "norm"  # norm: modulate every normalisation; ssf: every linear layer too
    last_k: int | None = None  # modulate the last k blocks only
    precision: Precision = "fp32"  # bf16: autocast, weights stored in float32; bf16-stored: weights in bfloat16
    examples_per_chunk: int | None = None  # also plan for micro-batches of this many examples of each task
    budget: float = 24.0  # available memory in GiB
    out: str | None = None  # folder for plan.csv, plan.md and plan.png

    def __post_init__(self) -> None:
        minima = {"ways": 2, "shots": 1, "queries": 1, "inner_steps": 1, "window": 1, "tasks_per_chunk": 1}
        minima |= {"text_length": 1, "image_size": 1, "examples_per_chunk": 1}
        for name, minimum in minima.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"{name}={value}: expected {minimum} or more{_REASONS.get(name, '')}")
        if not 0 < self.budget < math.inf:
            raise ValueError(f"budget={self.budget}: expected the device's memory in GiB, such as 24")


_REASONS = {
    "ways": "; classification needs two classes",
    "inner_steps": "; without an inner loop all estimators are the same",
}
