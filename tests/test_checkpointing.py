"""Activation checkpointing and low precision inside inner steps: the same gradients, less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import flat
from networks import batch, build, patched
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtl

NETWORKS = ["vit_tiny_patch16_224", "test_convnext", "bert", "llama", "gpt2"]


def problem_of(backbone: mtl.Backbone, k: int = 2) -> tuple[mtl.InnerProblem, dict[str, torch.Tensor]]:
    labels = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    inputs: Any = batch(backbone, 2, 6)
    learner = mtl.MetaLearner(backbone, mtl.Static(backbone.sites, backbone.width, 0.02), inner_steps=k)
    examples = mtl.Examples(inputs, labels)
    meta = {n: v.detach() for n, v in learner.generator(learner.view(examples)).items()}
    return learner.problem(mtl.Episode(examples, examples, 3)), meta


@pytest.mark.parametrize("pull", ["reverse", "finite-difference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_blocks_give_the_same_gradient(name: str, pull: str, tmp_path: Path):
    backbone = build(name, tmp_path)
    estimator = mtl.Rematerialised(pull)
    expected = flat(estimator(*problem_of(backbone)))
    backbone.configure(checkpoint_blocks=True)
    found = flat(estimator(*problem_of(backbone)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not patched(backbone.model)


def test_checkpointed_blocks_save_memory(tmp_path: Path):
    def saved(checkpointed: bool) -> int:
        backbone = build("vit_tiny_patch16_224", tmp_path, depth=4)
        backbone.configure(checkpoint_blocks=checkpointed)
        problem, meta = problem_of(backbone, 1)
        sizes: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x.detach()

        weights = {k: v.detach().requires_grad_() for k, v in problem.init(meta).items()}
        with saved_tensors_hooks(pack, lambda x: x):
            problem.inner_loss(weights, meta, 0)
        return sum(sizes.values())

    assert saved(True) < 0.5 * saved(False)


def test_finite_differences_run_on_fused_attention(tmp_path: Path):
    backbone = build("bert", tmp_path)
    exact = flat(mtl.Rematerialised()(*problem_of(backbone)))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the only kernel allowed, and it has no second derivative
        found = flat(mtl.Rematerialised("finite-difference")(*problem_of(backbone)))
    assert torch.cosine_similarity(found, exact, 0) > 0.999


@pytest.mark.parametrize("pull", ["reverse", "finite-difference"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "bert"])
def test_bfloat16_autocast_keeps_the_direction(name: str, pull: Any, tmp_path: Path):
    backbone = build(name, tmp_path)
    exact = flat(mtl.Rematerialised()(*problem_of(backbone)))
    pull = mtl.metagrad.FiniteDifference(0.1) if pull == "finite-difference" else pull
    with torch.autocast("cpu", torch.bfloat16):
        result = mtl.Windowed(window=2, pull=pull)(*problem_of(backbone))
    assert all(g.dtype == torch.float32 for g in result.grads.values())
    # Of networks 16 channels wide; wide ones average more.
    assert torch.cosine_similarity(flat(result), exact, 0) > 0.95
