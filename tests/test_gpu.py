"""On an accelerator: the same gradients in low precision, memory flat in the number of inner steps, no host's copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served_tasks
import torch
from gradients import agreement, flat
from networks import problem_of

import mtl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(scope="module")
def network() -> mtl.Backbone:
    return mtl.load_backbone("vit_small_patch16_224", pretrained=False, img_size=96, depth=6).to("cuda")


@pytest.mark.parametrize("pull", ["reverse", mtl.metagrad.FiniteDifference(0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_meta_gradient(network: mtl.Backbone, dtype: torch.dtype, pull: Any):
    expected = flat(mtl.Rematerialised()(*problem_of(network)))
    network.configure(precision=dtype)
    try:
        found = flat(mtl.Windowed(pull=pull)(*problem_of(network)))
    finally:
        network.configure(precision=None)
    assert agreement(found, expected)[0] > 0.99


@pytest.mark.parametrize("pull", ["reverse", "finite-difference"])
def test_memory_is_flat_in_the_number_of_steps(network: mtl.Backbone, pull: Any):
    def peak(k: int) -> int:
        problem, meta = problem_of(network, k)
        torch.cuda.reset_peak_memory_stats()
        mtl.Windowed(window=2, pull=pull)(problem, meta)
        return torch.cuda.max_memory_allocated()

    peak(2)
    assert peak(12) < 1.05 * peak(2)


def test_the_inner_loop_waits_for_nothing(network: mtl.Backbone):
    """Exact-forward windows read no number from the device; a wait would show as an error here."""
    problem, meta = problem_of(network)
    estimator = mtl.Windowed(window=2, mode="exact-forward")
    estimator(problem, meta)
    torch.cuda.set_sync_debug_mode("error")
    try:
        estimator(problem, meta)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["transformer, norms", "texts, norms", "images, readout"])
def test_a_server_answers_as_each_task_alone(kind: str, tmp_path: Path):
    backbone = served_tasks.network(kind, tmp_path).to("cuda")
    tasks = {name: task.to("cuda") for name, task in served_tasks.tasks_on(backbone).items()}
    items = served_tasks.items_for(backbone, 18)
    names = [list(tasks)[i % len(tasks)] for i in range(18)]
    found = mtl.Server(backbone, tasks, capacity=3).logits(items, names)
    expected = [one.cpu() for one in served_tasks.alone(tasks, items, names)]
    assert served_tasks.furthest(found, expected) < 1e-3  # other sizes of batches take other kernels
