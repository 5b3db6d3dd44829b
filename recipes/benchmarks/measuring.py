"""Seconds and memory of a call, measured alike in all benchmarks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from mtl.tools.memory import LiveBytes

Result = TypeVar("Result")
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What a call costs.

    Args:
        seconds: of the fastest repeat; the accelerator has finished.
        live_mib: most bytes of tensors alive at once that the call made, nan where they were not counted.
        peak_mib: on CUDA the most memory allocated, above what was allocated before; on a CPU by how much the call
            raised the process's resident memory; without Linux only what no earlier call needed.
    """

    seconds: float
    live_mib: float
    peak_mib: float


def measure(
    run: Callable[[], Result], repeats: int = 1, *, warm_up: bool = False, live: bool = True
) -> tuple[Result, Cost]:
    """The result of a call and its cost.

    Args:
        run: has no arguments and can be called again.
        repeats: how often it is timed.
        warm_up: call it once before, so that kernels are loaded and caches filled.
        live: count the bytes of live tensors in one more call; this one is slow, and warms up too.
    """
    counter = LiveBytes()
    if live:
        with counter:
            run()
    elif warm_up:
        run()
    gc.collect()
    before, seconds, result = _peak(reset=True), math.inf, None
    for _ in range(repeats):
        del result
        taken, result = timed(run)
        seconds = min(seconds, taken)
    assert result is not None
    return result, Cost(seconds, counter.peak / MIB if live else math.nan, _peak() - before)


def timed(run: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Result]:
    """Seconds of one call, until the accelerator has finished, and its result."""
    wait()
    start = clock()
    result = run()
    wait()
    return clock() - start, result


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds that this process worked, where a CPU computes: others on the machine do not count."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def _peak(reset: bool = False) -> float:
    """MiB: the most allocated on CUDA since the last reset; the most resident memory of this process on a CPU."""
    if not torch.cuda.is_available():
        if reset:
            _reset_resident()
        return resident_mib()
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    return torch.cuda.max_memory_allocated() / MIB


def _reset_resident() -> None:
    """Give unused memory back, and let the peak be what is resident now; Linux alone can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def resident_mib() -> float:
    """The most resident memory that this process has had so far, or since :func:`measure` set it back."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_of(name: str) -> torch.device:
    """The device of that name; for an empty name the accelerator, or the CPU where there is none."""
    if name:
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def wait() -> None:
    """Wait until the accelerator has finished; before reading a clock."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All values of a meta-gradient in one vector, keys in their order."""
    return torch.cat([v.flatten() for v in tensors.values()])
