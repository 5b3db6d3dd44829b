"""A comparison that is kept in a folder: it goes on where it stopped, and ends as one that nobody stopped."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_faults import ctrl_c, disk
from tiny import Blobs, backbone

import mtl
from mtl.fewshot import Method, choosing
from mtl.fewshot.evaluation import comparing
from mtl.fewshot.evaluation.results import FILE
from mtl.tools.files import write_whole
from mtl.tools.lock import FolderInUse, folder_lock

EPISODES, CHUNK = 7, 3  # chunks of 3, 2 and 2


class Counted(Blobs):
    """Says which episodes were sampled."""

    def __init__(self, name: str = "blobs") -> None:
        super().__init__()
        self.name, self.sampled = name, []

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def sample(self, index: int) -> mtl.Episode:
        self.sampled.append(index)
        return super().sample(index)


def guess(name: str, setting: float = 1.0, fail_at: int = 0) -> Method:
    """Answers that depend on the episode and the setting; a number of calls after which Ctrl-C comes."""
    calls = []

    def predict(episode: mtl.Episode) -> torch.Tensor:
        calls.append(episode.tasks)
        if len(calls) == fail_at:
            ctrl_c()
        return (setting * 1000 * episode.query.inputs.tensor.sum((2, 3, 4))).long() % episode.ways

    return Method(name, predict, identity=lambda: {"setting": setting})


def compare(methods: list[Method], folder: Path | None, tasks: mtl.TaskSource | None = None, **more: Any):
    options: dict[str, Any] = {"episodes": EPISODES, "tasks_per_chunk": CHUNK, "progress": False} | more
    return mtl.evaluate(methods, tasks or Counted(), folder=folder, **options)


def same(a: mtl.Comparison, b: mtl.Comparison) -> bool:
    rows = [[(r.method, r.accuracy.tolist(), r.adapted_values, r.tuned) for r in c.rows] for c in (a, b)]
    return rows[0] == rows[1] and a.families == b.families and a.reference == b.reference


def test_a_finished_comparison_returns_at_once(tmp_path):
    whole = compare([guess("a"), guess("b", 2.0)], None)
    assert same(compare([guess("a"), guess("b", 2.0)], tmp_path), whole)
    tasks, before = Counted(), (tmp_path / FILE).read_bytes()
    again = compare([guess("a", fail_at=1), guess("b", 2.0, fail_at=1)], tmp_path, tasks)
    assert same(again, whole)
    assert not tasks.sampled
    assert (tmp_path / FILE).read_bytes() == before
    assert [r.seconds_per_task for r in again.rows] == [
        r.seconds_per_task for r in compare([guess("a"), guess("b", 2.0)], tmp_path).rows
    ]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_ctrl_c_says_what_is_kept_and_nothing_is_done_twice(tmp_path, call):
    with pytest.raises(KeyboardInterrupt) as raised:
        compare([guess("a"), guess("b", fail_at=call)], tmp_path)
    done = (2 * call - 1) / 6
    [note] = raised.value.__notes__
    assert (
        note
        == f"{tmp_path / FILE} holds {done:.0%} of this comparison's results: the same command continues from there"
    )
    tasks = Counted()
    assert same(compare([guess("a"), guess("b")], tmp_path, tasks), compare([guess("a"), guess("b")], None))
    assert tasks.sampled == [*range(EPISODES)][[0, 3, 5][call - 1] :]
    assert len((tmp_path / FILE).read_text().splitlines()) == 6


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), garbage=st.binary(max_size=20), flipped=st.none() | st.floats(0, 0.999))
def test_whatever_happens_to_the_file_the_comparison_is_the_same(tmp_path, cut, garbage, flipped):
    whole = compare([guess("a"), guess("b")], None)
    (tmp_path / FILE).unlink(missing_ok=True)
    compare([guess("a"), guess("b")], tmp_path)
    contents = bytearray((tmp_path / FILE).read_bytes())
    contents = contents[: int(cut * len(contents))] + garbage
    if flipped is not None and contents:
        contents[int(flipped * len(contents))] ^= 1
    (tmp_path / FILE).write_bytes(contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **more: None)  # of damaged lines
        assert same(compare([guess("a"), guess("b")], tmp_path), whole)
        assert same(compare([guess("a", fail_at=1), guess("b", fail_at=1)], tmp_path), whole), "all is there"


def test_a_damaged_line_is_told(tmp_path):
    compare([guess("a")], tmp_path)
    lines = (tmp_path / FILE).read_text().splitlines()
    lines[1] = lines[1].replace("0.", "1.", 1)
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"results\.jsonl is damaged .* line 2"):
        compare([guess("a")], tmp_path)


def test_what_changed_is_measured_anew_and_the_rest_is_kept(tmp_path):
    compare([guess("a"), guess("b")], tmp_path)
    changed = [guess("a", fail_at=1), guess("b", 3.0)]
    assert same(compare(changed, tmp_path), compare([guess("a"), guess("b", 3.0)], None))
    for more in ({"tasks": Counted("others")}, {"setting": "tuning"}, {"tasks_per_chunk": 4}):
        with pytest.raises(KeyboardInterrupt):
            compare([guess("a", fail_at=1)], tmp_path, **more)
    assert same(
        compare([guess("a", fail_at=1), guess("b", fail_at=1)], tmp_path), compare([guess("a"), guess("b")], None)
    )


def test_more_episodes_keep_those_that_are_there(tmp_path):
    compare([guess("a")], tmp_path, episodes=6)
    tasks = Counted()
    found = compare([guess("a")], tmp_path, tasks, episodes=12)
    assert tasks.sampled == [*range(6, 12)]
    assert same(found, compare([guess("a")], None, episodes=12))


def test_a_method_without_an_identity_is_measured_each_time(tmp_path):
    nameless = replace(guess("a"), identity=None)
    compare([nameless, guess("b")], tmp_path)
    assert {json.loads(line)["method"] for line in (tmp_path / FILE).read_text().splitlines()} == {"b"}
    assert same(compare([nameless, guess("b", fail_at=1)], tmp_path), compare([guess("a"), guess("b")], None))


def test_two_at_once_in_one_folder(tmp_path):
    def other() -> None:
        with folder_lock(tmp_path):
            held.set()
            done.wait()

    held, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    try:
        with pytest.raises(FolderInUse):
            compare([guess("a")], tmp_path)
    finally:
        done.set()
        thread.join()
    compare([guess("a")], tmp_path)


def test_a_full_disk_names_the_file_and_keeps_what_is_there(tmp_path):
    compare([guess("a")], tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with disk(len(before) + 10), pytest.raises(OSError, match=r"results\.jsonl could not be written: .*make room"):
        compare([guess("a"), guess("b")], tmp_path)
    assert (tmp_path / FILE).read_bytes().startswith(before)
    assert same(compare([guess("a", fail_at=1), guess("b")], tmp_path), compare([guess("a"), guess("b")], None))


@pytest.mark.parametrize("name", ["table.csv", "table.json", "notes.md"])
def test_tables_are_whole_or_not_at_all(tmp_path, name):
    found, path = compare([guess("a")], None), tmp_path / name
    path.write_text("before")
    writers = {"csv": found.to_csv, "json": found.to_json, "md": lambda path: write_whole(path, b"x" * 1000)}
    with disk(100), pytest.raises(OSError, match=rf"{name} could not be written: .*make room"):
        writers[name.rpartition(".")[2]](path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [name], "no drafts"


def test_weights_of_a_learner_and_settings_of_baselines_count(tmp_path):
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, mtl.Static(b.sites, b.width), inner_steps=1)
    ours = lambda: [mtl.learner_method(learner), *mtl.fewshot.controls(learner)]  # noqa: E731
    before = compare(ours(), tmp_path)
    tasks = Counted()
    assert same(compare(ours(), tmp_path, tasks), before)
    assert not tasks.sampled
    with torch.no_grad():
        learner.generator.step_sizes_of.log_lr += 1.0
    compare(ours(), tmp_path, tasks)
    assert tasks.sampled, "another generator"
    tasks.sampled.clear()
    for _ in range(2):
        baselines = mtl.baselines(b, table=mtl.fewshot.choose_baselines("ncm", "logistic"), c=3.0)
        compare(baselines, tmp_path, tasks)
    assert len(tasks.sampled) == EPISODES
    compare(mtl.baselines(b, table=mtl.fewshot.choose_baselines("ncm", "logistic"), c=3.5), tmp_path, tasks)
    assert len(tasks.sampled) == 2 * EPISODES


def test_how_candidates_are_chosen_counts_where_they_are(monkeypatch):
    made = mtl.MetaLearner(backbone())

    def identities() -> list[dict[str, Any]]:
        methods = [mtl.learner_method(made, cross_validate=c) for c in (False, True)]
        return [dict(method.identity()) for method in methods if method.identity is not None]

    before = identities()
    monkeypatch.setitem(choosing.SETTINGS, "sharpness", 0.3)
    after = identities()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_tuning_goes_on(tmp_path):
    b, tasks = backbone(), Counted()
    table = mtl.fewshot.choose_baselines("ncm", "ridge", "logistic")
    tune = lambda folder: mtl.fewshot.tune_baselines(b, tasks, table=table, episodes=4, folder=folder)[1]  # noqa: E731
    best = tune(None)
    assert tune(tmp_path) == best
    tasks.sampled.clear()
    assert tune(tmp_path) == best
    assert not tasks.sampled


def test_an_estimate_comes_after_the_first_chunk(monkeypatch, capsys):
    monkeypatch.setattr(comparing, "WORTH_TELLING", 0.0)
    compare([guess("a"), guess("b")], None, progress=True, setting="5-way 1-shot")
    printed = capsys.readouterr().out
    assert "5-way 1-shot, 4 tasks left: about 00:00 in all" in printed
    assert "00:00  a" in printed
    assert "00:00  b" in printed
