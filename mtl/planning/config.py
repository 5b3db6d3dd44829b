"""What is to be planned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mtl.networks.modulation import SiteKind

Precision = Literal["fp32", "bf16", "bf16-stored"]


@dataclass(frozen=True)
class Config:
    backbone: str  # a timm name, hf/<id>, a local folder with a config.json, llama-1b or llama-8b
    ways: int = 5  # classes per task
    shots: int = 5  # support examples per class
    queries: int = 5  # query examples per class
    inner_steps: int = 5  # K
    window: int = 5  # inner steps of a window, and of the truncation
    tasks_per_chunk: int = 1  # tasks in one forward pass
    image_size: int | None = None  # pixels; the network's own when not given
    text_length: int = 128  # tokens of a text
    sites: SiteKind = "norm"  # norm: after every normalisation; ssf: after every linear layer too
    last_k: int | None = None  # modulate the last k blocks only
    precision: Precision = "fp32"  # bf16: autocast, weights kept in float32; bf16-stored: weights in bfloat16
    examples_per_chunk: int | None = None  # also plan for micro-batches of so many examples of each task
    budget: float = 24.0  # GiB that there are
    out: str | None = None  # a folder for plan.csv, plan.md and plan.png

    def __post_init__(self) -> None:
        least = {"ways": 2, "shots": 1, "queries": 1, "inner_steps": 1, "window": 1, "tasks_per_chunk": 1}
        least |= {"text_length": 1, "image_size": 1, "examples_per_chunk": 1}
        for name, smallest in least.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise ValueError(f"{name}={value}: expected {smallest} or more{_WHY.get(name, '')}")
        if not 0 < self.budget < math.inf:
            raise ValueError(f"budget={self.budget}: expected the GiB of the device, such as 24")


_WHY = {
    "ways": "; telling apart takes two classes",
    "inner_steps": "; without an inner loop all estimators are the same",
}
