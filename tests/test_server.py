"""Many tasks over one network: a mixed batch has the answers that each task gives alone."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from served_tasks import NETWORKS, alone, furthest, items_for, network, task_on, tasks_on
from tiny import backbone as tiny_backbone

import mtl
from mtl.fewshot.adapted_task import Part
from mtl.items import ItemError
from mtl.serving import Prediction, UnknownTask
from mtl.serving.passes import pass_slices

ROUNDING = 2e-6


def count_passes(backbone: mtl.Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples every forward pass from now on has."""
    counts: list[int] = []
    features = type(backbone.adapter).features

    def counted(self: Any, model: Any, inputs: Any) -> Any:
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        counts.append(len(first))
        return features(self, model, inputs)

    monkeypatch.setattr(type(backbone.adapter), "features", counted)
    return counts


# --- mixed batches ---


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_mixed_batch_is_answered_as_each_task_answers_alone(kind: str, tmp_path: Path):
    backbone = network(kind, tmp_path)
    tasks = tasks_on(backbone)
    items = items_for(backbone, 26)
    names = [list(tasks)[i * 5 % len(tasks)] for i in range(26)]
    expected = alone(tasks, items, names)
    with mtl.Server(backbone, tasks) as server:
        assert furthest(server.logits(items, names), expected) <= ROUNDING
        assert furthest(server.logits(items, names, batch_size=4), expected) <= ROUNDING


@pytest.mark.parametrize("kind", ["texts, norms", "images, readout"])
def test_answers_have_the_forms_of_a_task_alone(kind: str, tmp_path: Path):
    backbone = network(kind, tmp_path)
    tasks, items = tasks_on(backbone), items_for(backbone, 12)
    names = [list(tasks)[i % len(tasks)] for i in range(12)]
    pairs = [(tasks[name], item) for name, item in zip(names, items, strict=True)]
    with mtl.Server(backbone, tasks) as server:
        assert server.predict(items, names) == [task.predict([item])[0] for task, item in pairs]
        for row, (task, item) in zip(server.predict_proba(items, names), pairs, strict=True):
            torch.testing.assert_close(row, task.predict_proba([item])[0], rtol=1e-4, atol=1e-6)
        for top, (task, item) in zip(server.predict_top(items, names, 4), pairs, strict=True):
            same(top, task.predict_top([item], 4)[0])
        certain = [name for name in tasks if tasks[name].calibration]
        calibrated = [(name, item) for name in certain for item in items]
        found = server.predict_each([i for _, i in calibrated], [n for n, _ in calibrated], reject=0.9)
        expected = [next(tasks[name].predict_each([item], reject=0.9)) for name, item in calibrated]
        same(list(found), expected)
        assert 0 < sum(answer.label is None for answer in expected) < len(expected)
        same([server.submit(i, n, reject=0.9).result() for n, i in calibrated], expected)
        same(server.submit_top(items[0], "all", 5).result(), tasks["all"].predict_top([items[0]], 5)[0])
        with pytest.raises(ValueError, match="no examples were left out"):
            server.predict(items, "plain", reject=0.9)
        good, bad = server.submit(items[0], "all", reject=0.9), server.submit(items[0], "plain", reject=0.9)
        same([good.result()], expected[-12:-11])
        with pytest.raises(ValueError, match="no examples were left out"):
            bad.result()
        with pytest.raises(ValueError, match="k=0"):
            server.predict_top(items, names, 0)


def same(found: list[Prediction], expected: list[Prediction]) -> None:
    assert [answer.label for answer in found] == [answer.label for answer in expected]
    assert [answer.probability for answer in found] == pytest.approx([a.probability for a in expected], rel=1e-4)


@pytest.mark.parametrize("kind", ["texts, norms", "images, readout"])
def test_one_name_serves_all_items(kind: str, tmp_path: Path):
    backbone = network(kind, tmp_path)
    tasks, items = tasks_on(backbone), items_for(backbone, 5)
    server = mtl.Server(backbone, tasks)
    assert server.predict(items, "unit") == tasks["unit"].predict(items) == server.predict(items, ["unit"] * 5)
    assert server.predict(iter(items), "unit", batch_size=2) == tasks["unit"].predict(items)
    inputs = backbone.preprocess(items)
    if isinstance(inputs, dict):
        assert server.predict(inputs, "unit") == tasks["unit"].predict(items)
    assert server.predict([], "unit") == server.predict([], []) == []


def test_finished_features_are_taken_as_they_are(tmp_path: Path):
    backbone = network("texts, readout", tmp_path)
    tasks, items = tasks_on(backbone), items_for(backbone, 6)
    server, readout = mtl.Server(backbone, tasks), backbone.precompute(items)
    found = server.logits(readout, list(tasks))
    for row, logits in zip(found, server.logits(items, list(tasks)), strict=True):
        torch.testing.assert_close(row, logits, rtol=1e-2, atol=1e-2)  # cached in half precision


def test_without_sites_an_item_passes_through_once_however_many_tasks_ask(tmp_path: Path, monkeypatch):
    backbone = network("images, readout", tmp_path)
    server = mtl.Server(backbone, tasks_on(backbone))
    items, counts = items_for(backbone, 2), count_passes(backbone, monkeypatch)
    server.predict([items[i % 2] for i in range(12)], [name for name in server for _ in range(2)])
    assert sum(counts) == 2


def test_with_sites_a_mixed_batch_is_one_pass(tmp_path: Path, monkeypatch):
    backbone = network("transformer, norms", tmp_path)
    server = mtl.Server(backbone, {str(i): task_on(backbone, i) for i in range(12)})
    counts = count_passes(backbone, monkeypatch)
    server.predict(items_for(backbone, 12), [str(i) for i in range(12)])
    assert counts == [12]


def test_tasks_with_equal_modulation_share_the_features(tmp_path: Path, monkeypatch):
    backbone = network("transformer, norms", tmp_path)
    g = torch.Generator().manual_seed(0)
    scale, shift = (torch.randn(backbone.modulation_width, generator=g) for _ in range(2))

    def task() -> mtl.AdaptedTask:
        weight = torch.randn(3, backbone.width, generator=g)
        return mtl.AdaptedTask(backbone, (Part(weight, torch.zeros(3), scale.clone(), shift.clone()),), 3)

    tasks = {"a": task(), "b": task()}
    items, names = [items_for(backbone, 1)[0]] * 2, ["a", "b"]
    server, expected = mtl.Server(backbone, tasks), alone(tasks, items, names)
    counts = count_passes(backbone, monkeypatch)
    assert furthest(server.logits(items, names), expected) <= ROUNDING
    assert counts == [1]


def test_texts_are_divided_by_length_and_come_back_in_order(tmp_path: Path, monkeypatch):
    backbone = network("texts, readout", tmp_path)
    monkeypatch.setattr("mtl.serving.passes._PASS_IN_TOKENS_ON_CPU", 8)
    server, counts = mtl.Server(backbone, tasks_on(backbone)), count_passes(backbone, monkeypatch)
    items = items_for(backbone, 24)
    found = server.logits(items, "plain")
    assert len(counts) > 1
    assert sum(counts) == 24
    assert furthest(found, alone(tasks_on(backbone), items, ["plain"] * 24)) <= ROUNDING


def test_passes_are_bounded_and_pad_little():
    lengths = sorted(torch.randint(1, 100, (500,), generator=torch.Generator().manual_seed(0)).tolist())
    pieces = list(pass_slices(lengths, most=1000, cost=64))
    assert [i for piece in pieces for i in range(500)[piece]] == list(range(500))
    for piece in pieces:
        own = lengths[piece]
        assert len(own) * own[-1] <= 1000
        assert len(own) * own[-1] - sum(own) <= 64
    assert list(pass_slices([2000], most=1000, cost=64)) == [slice(0, 1)], "one that is larger passes alone"


def test_a_real_adapted_task_is_served(tmp_path: Path):
    from tiny import Blobs

    backbone = tiny_backbone()
    learner, episode = mtl.MetaLearner(backbone, inner_steps=2), Blobs().sample(0)
    adapted = learner.adapt(episode.support)
    server = mtl.Server(backbone, {"adapted": adapted})
    inputs = episode.query.inputs.map(lambda v: v[0])
    found = torch.stack(server.logits(inputs, "adapted"))
    torch.testing.assert_close(found, adapted.logits(episode.query.inputs)[0], rtol=1e-4, atol=1e-5)


# --- what cannot be answered ---


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path):
    backbone = network("texts, norms", tmp_path)
    server, items = mtl.Server(backbone, {"returns": task_on(backbone, 0)}), items_for(backbone, 3)
    with pytest.raises(UnknownTask, match=r"^no task is named 'retruns'; did you mean 'returns'\?$"):
        server.predict(items, "retruns")
    with pytest.raises(KeyError, match=r"no task is named 'x'; there are 1 tasks"):
        server.predict(items, ["returns", "x", "returns"])
    with pytest.raises(ValueError, match=r"2 names of tasks for more items"):
        server.predict(items, ["returns"] * 2)
    with pytest.raises(ValueError, match=r"4 names of tasks for 3 items; give tasks= a name for each item"):
        server.predict(items, ["returns"] * 4)
    with pytest.raises(ItemError, match=r"^item 2: a missing value"):
        server.predict([*items[:2], None], "returns", batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size=0"):
        server.predict(items, "returns", batch_size=0)
    with pytest.raises(ValueError, match=r"capacity=0"):
        mtl.Server(backbone, capacity=0)
    with pytest.raises(ValueError, match=r"a task named ''"):
        server.add("", task_on(backbone, 0))
    with pytest.raises(FileNotFoundError, match=r"expected a folder of \.mtl files"):
        mtl.Server(backbone, tmp_path / "nowhere")


def test_what_is_not_finite_is_named(tmp_path: Path):
    backbone = network("images, readout", tmp_path)
    server = mtl.Server(backbone, {"a": task_on(backbone, 0)})
    inputs = torch.as_tensor(backbone.preprocess(items_for(backbone, 3)))
    inputs[1] = torch.nan
    with pytest.raises(ItemError, match=r"^item 1: it holds NaN or infinity; leave it out"):
        server.predict({"": inputs}, "a")


def test_a_task_of_another_network_is_refused(tmp_path: Path):
    backbone, other = tiny_backbone(), tiny_backbone(depth=1)
    task = task_on(other, 0)
    task.save(tmp_path / "other.mtl")
    server = mtl.Server(backbone, tmp_path)
    with pytest.raises(ValueError, match=r"differs from it"):
        server.add("x", task)
    with pytest.raises(ValueError, match=r"differs from it"):
        server.add("x", tmp_path / "other.mtl")
    assert "x" not in server
    with pytest.raises(ValueError, match=r"differs from it"):
        server.predict(items_for(backbone, 1), "other")


# --- tasks that come and go ---


def test_tasks_are_added_replaced_and_removed(tmp_path: Path):
    backbone = tiny_backbone()
    old, new = task_on(backbone, 0), task_on(backbone, 1)
    new.save(tmp_path / "new.mtl")
    server, items = mtl.Server(backbone), items_for(backbone, 3)
    assert (len(server), list(server), "a" in server) == (0, [], False)
    server.add("a", old)
    assert server.predict(items, "a") == old.predict(items)
    server.add("a", tmp_path / "new.mtl")
    assert server.predict(items, "a") == new.predict(items)
    assert (len(server), list(server), "a" in server) == (1, ["a"], True)
    server.remove("a")
    assert len(server) == server.in_memory == 0
    with pytest.raises(UnknownTask):
        server.remove("a")
    assert (tmp_path / "new.mtl").exists()


def test_a_request_under_way_finishes_with_the_task_that_it_began_with(tmp_path: Path):
    backbone = tiny_backbone()
    old, items = task_on(backbone, 0), items_for(backbone, 6)
    server = mtl.Server(backbone, {"a": old, "b": task_on(backbone, 1)}, capacity=1)
    expected, answers = old.predict(items), server.predict_each(items, "a", batch_size=2)
    found = [next(answers).label]
    server.add("a", task_on(backbone, 2, ways=5))
    found.append(next(answers).label)
    server.remove("a")
    assert found + [answer.label for answer in answers] == expected


def test_a_folder_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch):
    backbone = tiny_backbone()
    tasks = {f"task{i}": task_on(backbone, i) for i in range(4)}
    for name, task in tasks.items():
        task.save(tmp_path / f"{name}.mtl")
    (tmp_path / "notes.txt").write_text("no task")
    identities: list[int] = []
    identity = mtl.Backbone.identity
    monkeypatch.setattr(mtl.Backbone, "identity", lambda self: identities.append(1) or identity(self))
    server = mtl.Server(backbone, tmp_path, capacity=2)
    assert list(server) == list(tasks)
    assert (server.in_memory, identities) == (0, [])
    items = items_for(backbone, 8)
    names = [f"task{i % 4}" for i in range(8)]
    assert furthest(server.logits(items, names), alone(tasks, items, names)) <= ROUNDING
    assert server.in_memory == 2
    assert len(identities) == 1, "the network is looked at once, not for every file"


def test_files_that_come_change_and_go_count_at_once(tmp_path: Path):
    backbone, folder = tiny_backbone(), tmp_path / "tasks"
    one, two, three = (task_on(backbone, i) for i in range(3))
    items = items_for(backbone, 3)
    one.save(folder / "a.mtl")
    two.save(tmp_path / "outside.mtl")
    with mtl.Server(backbone, folder) as server:
        under_way = server.predict_each(items, "a", batch_size=1)
        found = [next(under_way).label]
        two.save(folder / "b.mtl")
        assert server.predict(items, "b") == two.predict(items), "a file that came"
        assert ("b" in server, len(server), list(server)) == (True, 2, ["a", "b"])
        three.save(folder / "a.mtl")
        assert server.predict(items, "a") == three.predict(items), "a file that was replaced"
        assert found + [answer.label for answer in under_way] == one.predict(items), "as it began"
        server.remove("b")
        assert ("b" in server, list(server)) == (False, ["a"]), "its file is there, and it was removed"
        three.save(folder / "b.mtl")
        assert server.predict(items, "b") == three.predict(items), "another file of its name"
        server.add("a", two)
        one.save(folder / "a.mtl")
        assert server.predict(items, "a") == two.predict(items), "added by hand, which counts more than a file"
        server.remove("a")
        assert "a" not in server
        (folder / "b.mtl").unlink()
        assert len(server) == 0
        for name in ("b", "a", "../outside", "..", "", "x" * 999, "\0"):
            with pytest.raises(UnknownTask):
                server.submit(items[0], name)


def test_a_damaged_file_is_named_and_harms_no_other_task(tmp_path: Path):
    backbone = tiny_backbone()
    good = task_on(backbone, 0)
    good.save(tmp_path / "good.mtl")
    (tmp_path / "bad.mtl").write_bytes((tmp_path / "good.mtl").read_bytes()[:-9])
    items = items_for(backbone, 2)
    with mtl.Server(backbone, tmp_path) as server:
        with pytest.raises(ValueError, match=r"bad\.mtl"):
            server.predict(items, ["good", "bad"])
        futures = [server.submit(item, name) for item, name in zip(items, ["good", "bad"], strict=True)]
        assert futures[0].result().label == good.predict(items[0])[0]
        with pytest.raises(ValueError, match=r"bad\.mtl"):
            futures[1].result()


def test_a_thousand_tasks_fit_where_there_is_room_for_ten(tmp_path: Path):
    backbone = tiny_backbone(sites="none")
    server, items = mtl.Server(backbone, capacity=10), items_for(backbone, 5)
    for i in range(1000):
        server.add(f"task{i}", task_on(backbone, i, unit=True))
    assert (len(server), server.in_memory) == (1000, 10)
    tasks = {f"task{i}": task_on(backbone, i, unit=True) for i in (0, 3, 500, 998, 999)}
    assert furthest(server.logits(items, list(tasks)), alone(tasks, items, list(tasks))) <= ROUNDING
    spill = Path(server._library._spill.name)  # pyright: ignore[reportOptionalMemberAccess]
    before = len(list(spill.iterdir()))
    for i in range(20):
        server.remove(f"task{i}")
    assert len(list(spill.iterdir())) < before - 15, "the files of removed tasks go"
    server.close()
    assert not spill.exists()


def test_tensors_of_a_task_that_made_room_are_let_go(tmp_path: Path):
    backbone = tiny_backbone()
    task_on(backbone, 0).save(tmp_path / "file.mtl")
    server = mtl.Server(backbone, {"file": tmp_path / "file.mtl", "memory": task_on(backbone, 1)}, capacity=2)
    held = [weakref.ref(server.task(name).parts[0].weight) for name in server]
    server.add("new", task_on(backbone, 2))
    server.add("newer", task_on(backbone, 3))
    gc.collect()
    assert [tensor() for tensor in held] == [None, None]


def test_equal_tensors_of_many_tasks_are_held_once():
    backbone = tiny_backbone(sites="none")
    tasks = {str(i): task_on(backbone, i, even=True) for i in range(3)}
    server = mtl.Server(backbone, tasks)
    held = [server.task(name).standard for name in server]
    assert len({id(s.mean) for s in held if s}) == 1
    assert len({id(server.task(name).parts[0].weight) for name in server}) == 3


# --- threads ---


def test_threads_see_tasks_whole_while_others_replace_and_spill_them(tmp_path: Path):
    backbone = network("convolutions, norms", tmp_path)
    items = items_for(backbone, 4)
    versions = [task_on(backbone, seed, ways=2 + seed) for seed in range(3)]
    answers = [alone({"a": v}, items, ["a"] * 4) for v in versions]
    others = {f"other{i}": task_on(backbone, 10 + i) for i in range(4)}
    server = mtl.Server(backbone, {"a": versions[0], **others}, capacity=2)
    expected = alone(others, items, list(others))
    done = threading.Event()

    def replace() -> None:
        try:
            for i in range(60):
                server.add("a", versions[i % 3])
                server.add("passing", versions[0])
                server.remove("passing")
        finally:
            done.set()

    def ask() -> None:
        while not done.is_set():
            found = server.logits([*items, *items], ["a"] * 4 + list(others))
            one = answers[len(found[0]) - 2]
            assert furthest(found[:4], one) <= ROUNDING
            assert furthest(found[4:], expected) <= ROUNDING

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(replace), *(pool.submit(ask) for _ in range(3))]:
            future.result()
    assert 1 <= server.in_memory <= 2


# --- single requests ---


def test_single_requests_of_many_callers_make_mixed_batches(tmp_path: Path, monkeypatch):
    backbone = network("texts, norms", tmp_path)
    tasks = tasks_on(backbone)
    items = items_for(backbone, 24)
    names = [list(tasks)[i % len(tasks)] for i in range(24)]
    with mtl.Server(backbone, tasks, max_wait=20_000, max_batch=12) as server:
        batches: list[int] = []
        answer_each = server._gatherer._answer
        monkeypatch.setattr(server._gatherer, "_answer", lambda asked: batches.append(len(asked)) or answer_each(asked))
        with ThreadPoolExecutor(24) as pool:
            futures = list(pool.map(server.submit, items, names))
        found = [future.result(timeout=60).label for future in futures]
        assert found == server.predict(items, names)
        assert batches == [12, 12]


def test_an_error_belongs_to_its_own_request(tmp_path: Path):
    backbone = network("images, readout", tmp_path)
    task = task_on(backbone, 0)
    with mtl.Server(backbone, {"a": task}, max_wait=200) as server:
        items = items_for(backbone, 3)
        futures = [server.submit(item, "a") for item in [items[0], b"no image", items[1], "missing.png", items[2]]]
        assert [futures[i].result().label for i in (0, 2, 4)] == task.predict(items)
        for i in (1, 3):
            with pytest.raises(ItemError):
                futures[i].result()
        with pytest.raises(UnknownTask):
            server.submit(items[0], "b")


def test_closing_answers_what_was_submitted_and_takes_no_more(tmp_path: Path):
    backbone = tiny_backbone()
    task, items = task_on(backbone, 0), items_for(backbone, 6)
    with mtl.Server(backbone, {"a": task}, max_wait=10_000) as server:
        futures = [server.submit(item, "a") for item in items]
    assert [f.result(timeout=0).label for f in futures] == task.predict(items)
    for ask in (server.submit, server.predict):
        with pytest.raises(RuntimeError, match="the server is closed"):
            ask(items[0], "a")
    server.close()


def test_a_cancelled_request_is_left_out(tmp_path: Path):
    backbone = tiny_backbone()
    task, items = task_on(backbone, 0), items_for(backbone, 2)
    with mtl.Server(backbone, {"a": task}, max_wait=60_000) as server:
        futures = [server.submit(item, "a") for item in items]
        assert futures[0].cancel()
    assert futures[1].result(timeout=0).label == task.predict(items[1])[0]


def test_image_bytes_are_items(tmp_path: Path):
    backbone = network("images, readout", tmp_path)
    (image,) = items_for(backbone, 1)
    file = io.BytesIO()
    image.save(file, "PNG")
    server = mtl.Server(backbone, {"a": task_on(backbone, 0)})
    assert server.predict(file.getvalue(), "a") == server.predict([image], ["a"])
