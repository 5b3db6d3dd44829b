"""The benchmark of horizons: its loops, and that a run continues where it was cut short."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from helpers.long_loops import accuracies
from helpers.readout_loops import Head, Levels, Pool
from helpers.readouts import Data
from helpers.site_loops import SitePool, Sites
from tiny import Blobs, backbone

from mtl.metagrad import Exact, Rematerialised, Windowed, solve


def pool(tasks: int = 3, shots: int = 4, ways: int = 3, noise: float = 0.0) -> Pool:
    """Two levels, the second of which tells classes apart."""
    g = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(ways).repeat(shots), torch.arange(ways).repeat(5)]).repeat(tasks, 1)
    values = torch.randn(tasks, labels.shape[1], 14, generator=g)
    centres = torch.randn(tasks, ways, 6, generator=g)
    values[..., 8:] += 1.5 * centres.gather(1, labels.unsqueeze(-1).expand(-1, -1, 6))
    n = shots * ways
    values = (values - values[:, :n].mean(1, keepdim=True)).half()
    return Pool(values, labels, n, ways, (8, 6), (False,) * tasks)


def test_descent_on_outputs_is_descent_on_weights():
    head, batch = Head(), pool()[torch.arange(3)]
    learned = head.initial(pool(), 7) | {"rates": torch.randn(14), "start": torch.full((2,), -40.0)}
    learned |= {"size": torch.tensor([1.0]), "momentum": torch.tensor([0.5]), "decay": torch.tensor([-3.0])}
    meta = head.emit(learned, batch)
    outputs = solve(head.problem(batch, 7), meta)["outputs"]
    meta |= {"sizes": learned["rates"] + 1.0 - math.log(14)}
    weights = solve(head.on_weights(batch, 7), {k: v for k, v in meta.items() if k != "kernel"})["head"]
    torch.testing.assert_close(outputs, batch.values @ weights.mT, rtol=1e-4, atol=1e-5)


def double(pool: Pool):
    batch = pool[torch.arange(3)]
    return replace(batch, values=batch.values.double())


@pytest.mark.parametrize("loop", [Head(), Levels()], ids=["head", "levels"])
def test_everything_that_can_be_learned_has_an_exact_gradient(loop):
    check_gradients(loop, pool(), double(pool()))


def test_everything_that_can_be_learned_inside_a_network_has_one():
    tasks = SitePool(backbone(last_k=1).double(), Blobs(), 0.0, (False,) * 3)
    check_gradients(Sites(), tasks, tasks[torch.arange(3)])


def check_gradients(loop, tasks, batch):
    leaves = {k: v.double().requires_grad_() for k, v in loop.initial(tasks, 4).items()}
    meta = loop.emit(leaves, batch)
    held = {k: v.detach() for k, v in meta.items()}
    exact, *others = (e(loop.problem(batch, 4), held).grads for e in (Exact(), Rematerialised(), Windowed(1)))
    for grads in others:
        for k, v in exact.items():
            torch.testing.assert_close(grads[k], v, rtol=1e-6, atol=1e-10)
    emitted = {k: v for k, v in meta.items() if v.requires_grad}
    torch.autograd.backward(list(emitted.values()), [exact[k] for k in emitted])
    still = {k for k in loop.learnable if leaves[k].grad is None or not leaves[k].grad.any()}
    assert still == set()


def test_the_loop_inside_a_network_starts_at_class_means_and_learns_from_there():
    tasks = SitePool(backbone(last_k=1), Blobs(shots=6), 0.3, (False,) * 6)
    batch, loop = tasks[torch.arange(6)], Sites()
    learned = loop.initial(tasks, 8) | {"size": torch.tensor([-4.0])}
    meta, problem = loop.emit(learned, batch), loop.problem(batch, 8)
    before, after = problem.init(meta), solve(problem, meta)
    assert problem.inner_loss(after, meta, 0).lt(problem.inner_loss(before, meta, 0)).all()
    assert not before["scale"].any()
    given = torch.stack([Blobs(shots=6).sample(i).support.labels[0] for i in range(6)])
    assert 0.1 < (batch.labels[:, :18] != given).float().mean() < 0.5


def test_steps_on_levels_find_the_one_that_counts():
    tasks, loop = pool(24), Levels()
    learned = loop.initial(tasks, 30) | {"size": torch.tensor([1.0])}
    batch = tasks[torch.arange(8)]
    meta = loop.emit(learned, batch)
    strength = solve(loop.problem(batch, 30), meta)["strength"]
    assert strength[:, 1].mean() > strength[:, 0].mean() + 1
    assert accuracies(loop, learned, tasks, 30).mean() > 0.6


@pytest.fixture
def data(tmp_path) -> Data:
    files = [tmp_path / "notes.csv", tmp_path / "letters.csv"]
    for file, words in zip(files, ("word thing", "x yy"), strict=True):
        a, b = words.split()
        rows = [(f"{a} {f'{b} ' * c}{i}", f"c{c}") for c in range(9) for i in range(8)]
        with file.open("w", newline="") as f:
            csv.writer(f).writerows([("text", "label"), *rows])
    return Data(
        texts=tuple(map(str, files)), label_columns=("label",), hold_out_families=("letters.label",), ways=2,
        examples_per_class=8, min_per_class=3, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def test_a_run_is_continued_and_told(tmp_path, data, encoder, capsys):
    import horizon

    config = horizon.Config(
        out=str(tmp_path / "out"), data=data, backbone=encoder, loops=("levels",), learn=("rates",),
        inner_steps=(2,), rows=("horizon 1", "all steps"), shots=2, queries=2, seeds=(1,), steps=1, each=True,
        training_tasks=4, validation_tasks=2, test_tasks=6, tasks_per_step=2, sizes=(1.0,), noise=0.2,
    )  # fmt: skip
    found = horizon.main(config)
    out = tmp_path / "out"
    said = capsys.readouterr().out
    assert "## levels, 2 inner steps" in said
    rows = list(csv.DictReader((out / "horizon.csv").open(newline="")))
    assert {r["row"] for r in rows} == {"fixed", "horizon 1", "all steps", "first-order"}
    assert {r["learned"] for r in rows} >= {"", "rates", "start"}
    exact = next(r for r in rows if r["row"] == "all steps")
    assert float(exact["cosine"]) == pytest.approx(1, abs=1e-5)
    assert float(exact["resident"]) >= 0
    assert (out / "horizon.png").stat().st_size > 10_000
    files = sorted((out / "runs").glob("*.json"))
    assert len(files) == len(found)
    written = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    again = horizon.main(config)
    assert [r["accuracy"] for r in again] == [r["accuracy"] for r in found]
    assert all(f.stat().st_mtime_ns == at for f, at in written.items() if f != files[0])
    inside = horizon.main(replace(config, loops=("sites",), rows=("all steps",), learn=("rates", "start"), each=False))
    assert [(r["loop"], r["row"], len(r["accuracy"])) for r in inside] == [
        ("sites", "fixed", 6),
        ("sites", "all steps", 6),
    ]
    assert inside[1]["agreement"][0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_learned_is_named():
    import horizon

    with pytest.raises(ValueError, match="--learn speed: expected some of decay, examples, level_rates"):
        horizon.Config(data=Data(texts=("a.csv",)), learn=("speed",))
    assert replace(horizon.Config(data=Data(texts=("a.csv",))), **horizon.QUICK).seeds == (1,)
