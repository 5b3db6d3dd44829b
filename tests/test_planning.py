"""The planner: predictions against runs on real tensors, and what it says."""

from __future__ import annotations

import csv
import json
import resource
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mtl
from mtl.planning import PlanOptions, plan
from mtl.planning.__main__ import main
from mtl.planning.advice import changes
from mtl.planning.choices import UNROLLED, Activations, activation_options, representative
from mtl.planning.networks import CPU
from mtl.planning.tables import steps_within, summary, table
from mtl.planning.work import takes_pull, with_pull, work
from mtl.planning.workbench import Workbench

GIB = 2**30
EVERYTHING, BLOCK_INPUTS = Activations("everything"), Activations("block inputs", checkpoint_blocks=True)
SMALL = PlanOptions("", shots=1, queries=1, inner_steps=3, window=2, text_length=16)


@pytest.fixture
def bert(tmp_path) -> PlanOptions:
    return bert_of(tmp_path, layers=1)


def bert_of(folder: Path, layers: int, activation: str = "gelu") -> PlanOptions:
    sizes = {"hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 256}
    sizes |= {"hidden_act": activation}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 100, **sizes}))
    return replace(SMALL, backbone=str(folder))


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
@pytest.mark.parametrize("name", ["bert", "resnet10t"])
def test_predicted_is_what_a_real_run_holds(name, bert):
    options = bert if name == "bert" else replace(SMALL, backbone=name, image_size=32, last_k=1)
    fake, real = Workbench(options), Workbench(options, CPU)
    for activations in activation_options(replace(options, examples_per_chunk=3 if name == "bert" else None)):
        cheap, forward = mtl.Windowed(2, "lazy", pull="finite-difference"), mtl.Rematerialised("forward-over-reverse")
        for estimator in (mtl.Exact(), mtl.Windowed(2), cheap, forward):
            pull = str(estimator.pull) if takes_pull(estimator) else ""
            predicted = fake.peak(representative(estimator, pull), activations, 3)
            measured = real.measured(estimator, activations, 3)
            assert predicted == pytest.approx(measured, rel=0.1), (activations, estimator)


def test_low_precision_halves_stored_weights_and_shrinks_what_autocast_keeps(bert):
    whole, cast, stored = (Workbench(replace(bert, precision=p)) for p in ("fp32", "bf16", "bf16-stored"))
    parameters = sum(p.numel() for p in whole.backbone.model.parameters())
    assert whole.permanent == cast.permanent == stored.permanent + 2 * parameters
    long = [replace(bert, precision=p, text_length=64) for p in ("fp32", "bf16")]
    peaks = [Workbench(c).peak(mtl.FirstOrder(), EVERYTHING, 1) for c in long]
    assert peaks[1] < peaks[0]


def test_unrolled_memory_is_linear_in_the_steps_and_the_others_is_flat(bert):
    place = Workbench(bert, CPU)
    one, two, four = (place.measured(mtl.Exact(), EVERYTHING, k) for k in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-3)
    assert place.peak(mtl.Exact(), EVERYTHING, 4) == pytest.approx(four, rel=1e-3)
    for estimator in (mtl.Rematerialised(), mtl.Rematerialised("finite-difference")):
        least, most = (place.measured(estimator, EVERYTHING, k) - place.permanent for k in (1, 4))
        assert least <= most < 1.05 * least < 1.05 * (one - place.permanent)


def test_plan_says_what_fits_and_writes_it(tmp_path, capsys):
    bert = bert_of(tmp_path, layers=1, activation="silu")
    found = main(replace(bert, out=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert table(found) in printed
    assert summary(found) in printed
    rows = list(csv.DictReader((tmp_path / "out" / "plan.csv").open()))
    assert len(rows) == len(found.predicted)
    assert {r["estimator"] for r in rows} == set(mtl.metagrad.representatives(2))
    assert (tmp_path / "out" / "plan.md").read_text().startswith("| estimator |")
    assert (tmp_path / "out" / "plan.png").stat().st_size > 10_000
    lines = table(found).splitlines()
    assert lines[1].startswith(UNROLLED)
    times = [float(line.split()[-3 if ".." in line else -1]) for line in lines[1:2]]
    assert times[0] > 1, "recomputing takes longer than unrolled MAML that keeps everything"
    unrolled, recomputed = (found.find(UNROLLED, "", k.name) for k in activation_options(bert))
    lean = found.find("rematerialised", "finite-difference", "block inputs")
    assert unrolled is not None and recomputed is not None and lean is not None  # noqa: PT018
    assert unrolled.most == 1 < recomputed.most
    assert lean.gib < unrolled.gib
    assert found.find("rematerialised", "", "everything") is None
    assert found.fitting[0].most == min(p.most for p in found.predicted)
    assert "forward-over-reverse" in found.refused[0], "torch has no forward-mode formula for silu's derivative"
    tight = replace(found, options=replace(bert, budget=unrolled.gib))
    assert steps_within(tight, unrolled) == bert.inner_steps


def test_changes_are_tried_and_those_that_fit_do(tmp_path):
    tasks = replace(bert_of(tmp_path, layers=2), tasks_per_chunk=4, text_length=64)
    swept = mtl.Rematerialised("finite-difference")
    need = Workbench(tasks).peak(swept, BLOCK_INPUTS, tasks.inner_steps)
    found = changes(replace(tasks, budget=0.8 * need / GIB), blocks=2, progress=False)
    one = next(c for c in found if c.options == "--tasks-per-chunk 1")
    assert one.fits
    measured = Workbench(replace(tasks, tasks_per_chunk=1), CPU).measured(swept, BLOCK_INPUTS, 3)
    assert one.gib * GIB == pytest.approx(measured, rel=0.1)
    assert {c.options.split()[0] for c in found} == {
        "--tasks-per-chunk", "--examples-per-chunk", "--precision", "--last-k"
    }  # fmt: skip


def test_changes_are_put_together_where_none_is_enough(tmp_path):
    hopeless = changes(replace(bert_of(tmp_path, layers=2), budget=1e-6), blocks=2, progress=False)
    assert not any(c.fits for c in hopeless)
    assert hopeless[-1].options == "--examples-per-chunk 2 --precision bf16-stored --last-k 1"
    single = [c.gib for c in hopeless if c.options.count("--") == 1]
    assert hopeless[-1].gib < min(single)


def test_nothing_is_downloaded_or_allocated(monkeypatch):
    def connect(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place = Workbench(PlanOptions("llama-1b", text_length=16, shots=1, queries=1, last_k=1))
    assert place.permanent > 4 * GIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "half a GiB"
    assert place.blocks == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ways": 1}, "ways=1: expected 2 or more; classification needs two classes"),
        ({"inner_steps": 0}, "inner_steps=0: expected 1 or more"),
        ({"examples_per_chunk": 0}, "examples_per_chunk=0: expected 1 or more"),
        ({"budget": 0.0}, "budget=0.0: expected the device's memory in GiB"),
        ({"backbone": "vit_tiny_patch16_225"}, "nearest names: vit_tiny_patch16_224"),
        ({"backbone": "hf/nobody/nothing"}, "found no configuration of that name"),
        ({"image_size": 32}, "has no such option; leave it out"),
        ({"text_length": 1000}, "reads at most 512 tokens"),
        ({"last_k": 3}, "last_k=3"),
    ],
)
def test_errors_say_what_would_work(changed, message, bert, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        plan(replace(bert, **changed), progress=False)


def test_work_is_what_estimators_do():
    for estimator in (mtl.Exact(), mtl.Rematerialised()):
        least, most = work(estimator, 6)
        assert least == most
        assert (least.anchors, least.products, least.outer) == (6, 0, 1)
    least, most = work(mtl.Windowed(3), 6)
    assert (least.gradients, least.anchors) == (6, 2)
    assert most.anchors + most.products > least.anchors
    assert work(mtl.Windowed(3, "lazy"), 6)[0].gradients == 2
    assert work(mtl.FirstOrder(), 6)[1].anchors == 0
    assert with_pull(mtl.Windowed(3), "finite-difference") == mtl.Windowed(3, pull="finite-difference")
    assert with_pull(mtl.FirstOrder(), "finite-difference") == mtl.FirstOrder()


def test_autocast_is_switched_on_by_bf16_alone(bert):
    assert Workbench(replace(bert, precision="bf16")).backbone.options.precision is torch.bfloat16
    assert Workbench(replace(bert, precision="bf16-stored")).backbone.options.precision is None
