"""Networks larger than one device: sharded over two real processes, or offloaded, they give what whole ones give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from networks import build, load
from shard_decoder import GOING_BY_VALUE, Sentences, gradient, learner_of

import mtl

SCRIPT = Path(__file__).parent / "shard_decoder.py"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += ["--main_process_port", "0", str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow  # three interpreters to start
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_decoder_gives_the_meta_gradient_of_a_whole_one(sharded: Path, rank: int):
    found = torch.load(sharded / f"gradients-{rank}.pt", weights_only=True)
    assert found.pop("share") == pytest.approx([0.5], abs=0.01), "each process holds half"
    [refusal] = found.pop("refusal")
    assert "sharded over processes" in refusal
    assert "pull='finite-difference'" in refusal
    for name, ((whole, _), *others) in found.items():
        # Alone, a process with an easier task would take longer sub-steps; then the gradients are alike, not the same.
        tolerance = 1e-2 if name.startswith(GOING_BY_VALUE) else 1e-5
        for other, _ in others:
            assert float((other - whole).norm() / whole.norm()) < tolerance, name


@pytest.mark.slow
def test_processes_that_share_a_network_walk_in_step(sharded: Path):
    pulls = [
        {
            name: [p for _, p in runs]
            for name, runs in torch.load(sharded / f"gradients-{r}.pt").items()
            if "last_k" in name
        }
        for r in (0, 1)
    ]
    apart = {name for name in pulls[0] if pulls[0][name][0] != pulls[1][name][0]}
    assert {name.split(",")[0] for name in apart} == set(GOING_BY_VALUE), (
        "alone they would differ, or this shows nothing"
    )
    for name in apart:
        assert pulls[0][name][2:] == pulls[1][name][2:], "sharded they do not"


@pytest.mark.slow
def test_training_on_a_sharded_network_is_training(sharded: Path):
    whole, parts = (
        [json.loads(line) for line in (sharded / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "sharded")
    )
    assert [r["step"] for r in parts] == [1, 2]
    for a, b in zip(whole, parts, strict=True):
        for key in ("loss", "accuracy", "gradient_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-3)
    assert (sharded / "sharded" / "best" / "generator.safetensors").is_file()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "llama", "bert"])
@pytest.mark.parametrize("place", ["both", "disk", "auto"])
def test_a_spread_network_gives_the_meta_gradient_of_a_whole_one(name: str, place: Any, tmp_path: Path):
    estimator = mtl.Windowed(2, pull=mtl.metagrad.FiniteDifference(0.05))
    whole = load(name, tmp_path, last_k=1)
    episode = episode_for(whole)
    expected, _ = gradient(learner_of(whole, estimator=estimator), episode)
    parts = [n for n, _ in whole.model.named_children()] + [n for n, _ in whole.model.named_parameters(recurse=False)]
    half = dict.fromkeys(parts, "cpu") | dict.fromkeys(parts[: len(parts) // 2], "disk")
    device_map = {"auto": "auto", "disk": dict.fromkeys(parts, "disk"), "both": half}[place]
    placed = load(name, tmp_path, last_k=1, device_map=device_map, offload_folder=tmp_path / "offload")
    found, _ = gradient(learner_of(placed, estimator=estimator), episode)
    # Norms whose weights are moved in and out fold nothing, so sums are rounded in another order.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert placed.identity() == whole.identity()
    assert "device_map" not in placed.spec()["load"], "a place is not part of what a network is"
    if place == "auto":  # it fits, so it is whole, and has second derivatives
        assert placed.placement is None
        gradient(learner_of(placed), episode)
        return
    away = sum(p.numel() for p in placed.model.parameters() if p.is_meta)
    share = away / sum(p.numel() for p in placed.model.parameters())
    assert (0 < share < 1) if place == "both" else (share > 0.8), f"{share:.0%} of the weights are away"
    with pytest.raises(RuntimeError, match="moved in and out"):
        gradient(learner_of(placed), episode)


def episode_for(backbone: mtl.Backbone) -> mtl.Episode:
    examples = mtl.Examples(backbone.example_inputs(6).with_task_axis(), torch.tensor([[0, 1, 2, 0, 1, 2]]))
    return mtl.Episode(examples, examples, 3)


def test_stored_weights_are_put_in_place_as_they_are_read(tmp_path: Path):
    whole = build("llama", tmp_path)
    whole.modulator.remove()
    whole.model.save_pretrained(tmp_path / "stored")
    whole.modulator.install()
    places = {"embed_tokens": "cpu", "layers.0": "disk", "layers.1": "cpu", "norm": "cpu", "rotary_emb": "cpu"}
    placed = mtl.load_backbone(tmp_path / "stored", device_map=places, offload_folder=tmp_path / "offload")
    assert placed.placement.device == torch.device("cpu")
    estimator = mtl.Windowed(2, pull=mtl.metagrad.FiniteDifference(0.05))
    expected, found = (gradient(learner_of(b, estimator=estimator), Sentences().sample(0))[0] for b in (whole, placed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert placed.fingerprint() == whole.fingerprint()


def test_what_cannot_be_placed_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"one process.*device_map"):
        mtl.shard(load("llama", tmp_path), Accelerator(cpu=True))
    with pytest.raises(ValueError, match="expected 'auto'"):
        load("vit_tiny_patch16_224", tmp_path, device_map="balanced")
    with pytest.raises(ValueError, match=r"quantization='4bit' of vit_tiny.*dtype='bfloat16'"):
        load("vit_tiny_patch16_224", tmp_path, quantization="4bit")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_weights_have_a_meta_gradient(bits: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason='pip install "mtl[quantized]"')
    whole = build("llama", tmp_path)
    whole.modulator.remove()
    whole.model.save_pretrained(tmp_path / "stored")
    backbone = mtl.load_backbone(tmp_path / "stored", quantization=bits)
    episode = Sentences().sample(0)
    exact, _ = gradient(learner_of(backbone, estimator=mtl.Rematerialised()), episode)
    found, _ = gradient(
        learner_of(backbone, estimator=mtl.Rematerialised(mtl.metagrad.FiniteDifference(0.05))), episode
    )
    assert torch.cosine_similarity(found, exact, 0) > 0.99
    whole.modulator.install()
    full, _ = gradient(learner_of(whole, estimator=mtl.Rematerialised()), episode)
    assert torch.cosine_similarity(exact, full, 0) > 0.5, "the same network, coarser"
