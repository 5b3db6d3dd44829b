"""Every benchmark does what its first line says, on little. Each is imported where it is run."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_data import text_table

import mtl


def test_many_tasks_in_one_call(tmp_path):
    import adapt_many

    rows = adapt_many.main(adapt_many.Config(tasks=2, ways=2, shots=2, image_size=16, out=str(tmp_path)))
    assert [row["how"] for row in rows] == ["one by one", "one learner", "one call"]
    assert rows == list(csv.DictReader((tmp_path / "adapt_many.csv").open()))


def test_fixed_label_sets(tmp_path, encoder):
    import compare_text

    data = str(text_table(tmp_path / "t.csv", 3, 6))
    config = compare_text.Config(
        backbone=encoder, data=data, text_column="note", label_column="kind", max_length=16, shots=(2, 3), queries=2,
        draws=3, out=str(tmp_path / "out"),
    )  # fmt: skip
    rows = compare_text.main(config)
    assert [(r["method"], r["classes"], r["shots"]) for r in rows] == [
        (name, 3, shots) for shots in (2, 3) for name in ("nearest class mean", "logistic regression")
    ]
    assert len(list(csv.DictReader((tmp_path / "out" / "text.csv").open()))) == 4


def test_comparison_shows_memory_flat_in_the_number_of_steps(tmp_path, monkeypatch):
    import compare_estimators

    flat = ("rematerialised", "windowed(5), adaptive", "windowed(5), lazy", "first-order")
    few = {k: compare_estimators.ESTIMATORS[k] for k in ("exact", *flat)}
    monkeypatch.setattr(compare_estimators, "ESTIMATORS", few)
    config = compare_estimators.Config(
        networks=("vit", "bert"), depth=2, last_k=1, inner_steps=(2, 6), ways=2, shots=1, queries=1, out=str(tmp_path)
    )
    rows = compare_estimators.main(config)
    by = {(r["network"], r["K"], r["estimator"]): r for r in rows}
    for network in ("vit", "bert"):
        for name in flat:
            assert by[network, 6, name]["MiB"] < 1.1 * by[network, 2, name]["MiB"]
        unrolled = [by[network, k, "exact"]["MiB"] for k in (2, 6)]
        assert unrolled[1] > 1.5 * unrolled[0], "the measure can see growth"
        exact = by[network, 6, "rematerialised"]
        assert all(exact[f"cosine {t}"] == pytest.approx(1, abs=1e-4) for t in "IDLO")
        assert by[network, 6, "first-order"]["norm L"] == 0
    assert (tmp_path / "estimators.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((tmp_path / "estimators.csv").open()))) == len(rows)


def test_peers_agree_and_one_that_fails_is_named(tmp_path, capsys, monkeypatch):
    import compare_peers

    def here(name, module, k, config):
        if name == "missing":
            raise ImportError("No module named 'missing'")
        return compare_peers.measure_here(name, module, replace(config, inner_steps=(k,)))[0]

    monkeypatch.setattr(compare_peers, "PEERS", {k: v for k, v in compare_peers.PEERS.items() if "plain" in k})
    ours = {name: compare_peers.OURS[name] for name in ("mtl, exact", "mtl, rematerialised", "mtl, first-order")}
    monkeypatch.setattr(compare_peers, "OURS", ours | {"missing": None})
    monkeypatch.setattr(compare_peers, "measure_apart", here)
    sizes = {"modules": ("vit", "bert"), "depth": 1, "inner_steps": (2,), "image_size": 32, "repeats": 1}
    rows = compare_peers.main(compare_peers.Config(**sizes, out=str(tmp_path)))
    assert [(r["module"], r["library"]) for r in rows] == [
        (module, name) for module in ("vit", "bert") for name in (*compare_peers.PEERS, *ours)
    ]
    exact = [r for r in rows if "first-order" not in r["library"]]
    assert all(r["error"] < 1e-4 for r in exact)
    assert len({round(r["error"], 4) for r in rows if "first-order" in r["library"] and r["module"] == "vit"}) == 1
    assert re.search("missing +not measured: No module", capsys.readouterr().out)


def test_peers_are_measured_in_processes_of_their_own(tmp_path):
    import compare_peers

    config = compare_peers.Config(depth=1, repeats=1, device="cpu", out=str(tmp_path))
    with pytest.raises(RuntimeError, match="missing"):
        compare_peers.measure_apart("missing", "vit", 2, config)


def test_accuracy_at_equal_wall_clock(tmp_path):
    import compare_accuracy

    config = compare_accuracy.Config(seconds=0.1, inner_steps=1, tasks=2, validation_tasks=4, out=str(tmp_path))
    found = compare_accuracy.main(config)
    assert len(found.rows) == 4
    assert all("outer steps" in r.method for r in found.rows)
    assert (tmp_path / "accuracy.csv").is_file()


def test_every_shortcut_is_measured(tmp_path, capsys):
    import compare_speed

    config = compare_speed.Config(depth=1, inner_steps=1, tasks=2, repeats=1, out=str(tmp_path))
    found = compare_speed.main(config)
    assert found.keys() == {"prefix", "chunk", "budget", "checkpoint", "bf16"}
    assert all(v > 0 for v in found.values())
    assert "cosine of bf16" in capsys.readouterr().out


def test_outer_steps_and_tuning_are_timed(tmp_path, capsys):
    import training_speed

    config = training_speed.Config(
        networks=("glyphs", "vit"), tuned=("glyphs", "vit"), tasks=4, shots=1, image_size=32, inner_steps=1,
        baseline_steps=1, repeats=1, out=str(tmp_path),
    )  # fmt: skip
    found = training_speed.main(config)
    assert found == json.loads((tmp_path / "training_speed.json").read_text())
    assert all(seconds > 0 for seconds in found.values())
    assert {"glyphs, channelwise: seconds per outer step", "vit: seconds per outer step"} <= found.keys()
    together = [name for name in found if name.endswith("2 together")]
    assert len(together) == 5, "three baselines on the readout, one inside each network"
    assert capsys.readouterr().out.count("times as fast together") == 5


def test_what_modulation_costs(tmp_path):
    import modulation_cost

    config = modulation_cost.Config(
        networks=("test_efficientnet", "bert"), image_size=32, length=4, depth=1, examples=4, tasks=2, repeats=1,
        out=str(tmp_path),
    )  # fmt: skip
    rows = modulation_cost.main(config)
    assert [(r["network"], r["pass"]) for r in rows] == [
        (network, what) for network in config.networks for what in ("forward", "forward and backward")
    ]
    assert all(r["plain seconds"] > 0 and r["one task"] > 0 and r["several tasks"] > 0 for r in rows)
    assert len(list(csv.DictReader((tmp_path / "modulation_cost.csv").open()))) == 4


def test_precision_is_compared(tmp_path):
    import compare_precision

    kept = {k: compare_precision.ESTIMATORS[k] for k in ("exact", "windowed(5), adaptive", "sama")}
    config = compare_precision.Config(networks=("vit",), depth=1, inner_steps=2, out=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_precision, "ESTIMATORS", kept)
        exact, adaptive, sama = compare_precision.main(config)
    assert exact["cosine fp16"] != exact["cosine fp16"], "refused"
    assert min(row[f"cosine {c}"] for row in (adaptive, sama) for c in ("bf16", "fp16", "stored")) > 0.98
    assert (tmp_path / "precision.csv").is_file()


def test_a_meta_step_of_a_large_backbone_is_measured(tmp_path, capsys):
    import large_backbone

    config = large_backbone.Config(
        backbone="vit_tiny_patch16_224", shots=1, queries=1, ways=2, inner_steps=2, precision="fp32",
        examples_per_chunk=1, estimator=mtl.metagrad.EstimatorOptions(window=2), out=str(tmp_path),
    )  # fmt: skip
    found = large_backbone.main(config)
    assert json.loads((tmp_path / "result.json").read_text())["pulls"] == 1
    assert 0 < found["allocated_gib"] < found["peak_gib"]
    assert found["gradient_norm"] > 0


def test_the_cliff_is_drawn(tmp_path):
    import draw_cliff

    config = draw_cliff.Config(depth=1, inner_steps=5, curvatures=(0.02, 0.8), out=str(tmp_path))
    found = draw_cliff.main(config)
    exact_forward, linear = "windowed(5), exact-forward", draw_cliff.LINEAR
    assert all(c.cosine["scale"] > 0.99 for c in (*found[exact_forward], found[linear][0], *found[draw_cliff.ADAPTIVE]))
    assert found[linear][1].cosine["example"] < 0.9, "past the cliff"
    assert found[linear][1].cosine["scale"] < 0.99 < found[exact_forward][1].cosine["scale"]
    assert (tmp_path / "cliff.png").stat().st_size > 10_000


def test_compare_transfer_costs(tmp_path):
    import compare_transfer_costs

    names = ("exact, unrolled", "rematerialised", "windowed, lazy", "one-step")
    settings = compare_transfer_costs.Config(
        only=names, inner_steps=(2, 4), window=2, batch=4, repeats=1, warm_steps=1, out=str(tmp_path)
    )
    rows = {(r["K"], r["estimator"]): r for r in compare_transfer_costs.main(settings)}
    elsewhere = "MiB, states elsewhere"
    for name in ("rematerialised", "windowed, lazy"):
        assert rows[4, name][elsewhere] < 1.1 * rows[2, name][elsewhere]
        assert rows[4, name][elsewhere] < rows[4, name]["MiB"]
    assert rows[4, "exact, unrolled"]["MiB"] > 1.3 * rows[2, "exact, unrolled"]["MiB"]
    assert rows[4, "rematerialised"]["cosine"] > 0.999
    assert rows[4, "one-step"]["norm"] == 0


def test_compare_transfer_costs_says_what_a_window_is_linearised_at(tmp_path):
    import compare_transfer_costs

    settings = compare_transfer_costs.Config(
        only=("rematerialised", "windowed, adaptive"), inner_steps=(4,), window=4, batch=16, repeats=1, warm_steps=1,
        minibatches=("own", "mean", "shared"), momentum=0.0, inner_lr=1e-3, out=str(tmp_path),
    )  # fmt: skip
    rows = compare_transfer_costs.main(settings)
    cosines = {r["minibatches"]: r["cosine"] for r in rows if r["estimator"] == "windowed, adaptive"}
    assert cosines["own"] < cosines["mean"] - 0.03
    assert cosines["shared"] > 0.99


def test_what_needs_an_accelerator_also_runs_without(tmp_path):
    import gpu

    config = gpu.Config(
        peers="vit_tiny_patch16_224", peers_size=32, inner_steps=(2,), depth=1, large="test_vit", large_steps=2,
        large_shots=1, threads=1, out=str(tmp_path),
    )  # fmt: skip
    measured = gpu.main(config)
    assert [row["method"] for row in measured["peers"]] == list(gpu.COMPARED)
    cosine = {row["method"]: row["cosine"] for row in measured["peers"]}
    assert cosine["plain PyTorch, unrolled"] > 0.999
    assert cosine["mtl, first-order"] < cosine["mtl, rematerialised, finite difference"]
    assert all(row["cosine bf16"] > 0.9 for row in measured["precision"])
    everything, checkpointed = measured["large"][1:]
    assert everything["predicted GiB"] > checkpointed["predicted GiB"] > 0
    assert everything["seconds"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["peers"] == measured["peers"]


def test_running_out_of_memory_is_a_row():
    import gpu

    def run():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")

    assert gpu.attempt(run, 1) == "CUDA out of memory"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux sets the peak of resident memory back")
def test_resident_memory_is_of_the_call_alone():
    from measuring import measure

    allocate = lambda mib: float(torch.ones(mib * 2**18).sum())  # noqa: E731
    for mib in (160, 80):  # what an earlier call needed does not hide the next one's
        _, cost = measure(partial(allocate, mib), live=False)
        assert cost.peak_mib == pytest.approx(mib, abs=20)
