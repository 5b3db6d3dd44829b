"""Faults in the middle of a run: it ends in plain words, and the same command continues to the same result."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing.resource_sharer import DupFd
from pathlib import Path

import pytest
import stress_kills
import torch
from stress_kills import same
from tiny import Blobs, backbone
from torch.utils.data import get_worker_info

import mtl

CONFIG = mtl.TrainingConfig(
    steps=6, tasks_per_step=2, warmup=1, validate_every=3, validation_tasks=4, save_every=2, self_check=False
)


SECOND = "step-00000002.pt is intact (step 2 of 6): the same command continues"


class Then(Blobs):
    """Something happens when the first episode of a step (counted from 1) is asked for."""

    def __init__(self, step: int, what: Callable[[], object]) -> None:
        super().__init__()
        self.index, self.what = (step - 1) * CONFIG.tasks_per_step, what

    def sample(self, index: int) -> mtl.Episode:
        if index == self.index:
            self.what()
        return super().sample(index)


def train(folder: Path, tasks: mtl.TaskSource | None = None, **changes) -> mtl.MetaLearner:
    torch.manual_seed(0)
    b = backbone()
    learner = mtl.MetaLearner(b, mtl.SupportConditioned(b.sites, b.width, hidden=16), inner_steps=2)
    return mtl.train(learner, tasks or Blobs(), Blobs(), replace(CONFIG, **changes), folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def result(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    states = {p.name: torch.load(p, weights_only=True) for p in (folder / "checkpoints").iterdir()}
    metrics = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    return {"files": sorted(contents(folder)), "best": contents(folder / "best"), "metrics": metrics} | states


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return result(folder)


def note_of(raised: pytest.ExceptionInfo) -> str:
    *_, note = raised.value.__notes__
    assert "".join(traceback.format_exception(raised.value)).rstrip().endswith(note), "the last line that people see"
    return note


def assert_goes_on(folder: Path, whole: dict[str, object]) -> None:
    """To the last bit, and nothing else lies about."""
    train(folder)
    assert same(result(folder), whole)


@contextmanager
def disk(room: int = resource.RLIM_INFINITY) -> Iterator[Callable[[int], None]]:
    """A function that lets no file grow beyond so many bytes: a disk that fills up in the middle of a write."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, "or the limit would kill"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # noqa: E731
    printed = io.StringIO()  # to memory, or progress bars meet the limit too
    try:
        with redirect_stderr(printed), redirect_stdout(printed):
            limit(room)
            yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SIZES = r".*it takes [\d,]+ bytes, [\d,]+ bytes are free there: make room"


@pytest.mark.parametrize(
    ("at", "size", "named", "good"),
    [
        (4, 10_000, rf"step-00000004\.pt could not be written: {SIZES}", SECOND),
        (3, 10_000, rf"best could not be written: {SIZES}", SECOND),
        (4, 700, r"metrics\.jsonl could not be written: .*[\d,]+ bytes are free there: make room", SECOND),
        (
            1,
            10,
            r"metrics\.jsonl could not be written",
            "run has no checkpoint yet (save_every=2): the same command starts anew",
        ),
    ],
    ids=["checkpoint", "best", "metrics", "first"],
)
def test_a_full_disk(at, size, named, good, tmp_path, whole):
    with disk() as limit, pytest.raises(OSError, match=named) as raised:
        train(tmp_path / "run", Then(at, lambda: limit(size)))
    assert good in note_of(raised)
    assert not list((tmp_path / "run").rglob(".*")), "no drafts"
    assert_goes_on(tmp_path / "run", whole)


def test_a_full_disk_from_the_start(tmp_path, whole):
    with disk(0), pytest.raises(OSError, match=r"run/checkpoints could not be written: .*: make room"):
        train(tmp_path / "run", Then(1, pytest.fail))
    assert_goes_on(tmp_path / "run", whole)


def test_a_read_only_folder_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def refuse(path: Path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)  # root, as whom tests may run, is refused nothing
    with pytest.raises(PermissionError, match=r"checkpoints could not be written: Permission denied; choose"):
        train(tmp_path / "run", Then(1, pytest.fail))


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "run").write_text("notes")
    with pytest.raises(NotADirectoryError, match=r"run/checkpoints could not be written: Not a directory; choose"):
        train(tmp_path / "run", Then(1, pytest.fail))
    assert (tmp_path / "run").read_text() == "notes"


def test_a_finished_run_needs_no_writing(tmp_path):
    train(tmp_path / "run")
    before = contents(tmp_path / "run")
    with disk(0):
        train(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def die() -> None:
    assert get_worker_info() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise LookupError("no such image")


def test_a_worker_that_dies(tmp_path, whole):
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\S* \d+\) .*(killed by signal|exited)") as raised:
        train(tmp_path / "run", Then(6, die), workers=1)
    assert raised.value.__notes__[0] == "a process that prepares episodes died; if memory was short, use fewer than 1"
    assert "is intact (step" in note_of(raised)
    assert_goes_on(tmp_path / "run", whole)


@pytest.mark.parametrize("error", [ConnectionResetError, FileNotFoundError, EOFError])
def test_a_worker_whose_connection_breaks_before_its_death_is_known(error, tmp_path, monkeypatch):
    def broken(_: DupFd) -> int:
        (worker,) = multiprocessing.active_children()
        threading.Timer(0.1, os.kill, (worker.pid, signal.SIGKILL)).start()
        raise error("broken")

    monkeypatch.setattr(DupFd, "detach", broken)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) is killed by signal") as raised:
        train(tmp_path / "run", workers=1)
    assert raised.value.__notes__[0].startswith("a process that prepares episodes died")
    assert "has no checkpoint yet" in note_of(raised)


def test_an_error_in_a_worker_is_the_tasks_own(tmp_path):
    with pytest.raises(LookupError, match="no such image") as raised:
        train(tmp_path / "run", Then(6, fail), workers=1)
    assert "step-00000004.pt is intact (step 4 of 6)" in note_of(raised)
    assert len(raised.value.__notes__) == 1, "no process died"


def ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt) as raised:
        train(tmp_path / "run", Then(6, ctrl_c))
    assert "step-00000004.pt is intact (step 4 of 6): the same command continues" in note_of(raised)
    assert_goes_on(tmp_path / "run", whole)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_ctrl_c_in_the_middle_of_saving(call, tmp_path, monkeypatch):
    original = getattr(os, call)

    def interrupted(*args):
        if (tmp_path / "run" / "checkpoints" / "step-00000002.pt").exists():
            ctrl_c()
        return original(*args)

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(tmp_path / "run", validate_every=6)
    assert "step-00000002.pt is intact (step 2 of 6)" in note_of(raised)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002.pt"]


def stopped(folder: Path) -> Path:
    """A run that came to step 5; the newest of its checkpoints."""
    with pytest.raises(KeyboardInterrupt):
        train(folder, Then(6, ctrl_c))
    return folder / "checkpoints" / "step-00000004.pt"


def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole):
    newest = stopped(tmp_path / "run")
    contents = bytearray(newest.read_bytes())
    contents[len(contents) // 2] ^= 1
    newest.write_bytes(contents)
    with pytest.warns(UserWarning, match=r"step-00000004\.pt cannot be read .*goes on from step-00000002\.pt"):
        assert_goes_on(tmp_path / "run", whole)


def test_damaged_checkpoints_alone_end_the_run_and_nothing_is_touched(tmp_path):
    folder = stopped(tmp_path / "run").parent
    for file in folder.iterdir():
        file.write_bytes(b"")
    (folder / ".step-00000006-0123abcd.pt").touch()
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no checkpoint of this run can be read \(.*00004\.pt: its end is missing"):
        train(tmp_path / "run")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("other", ["foreign", "other settings"])
def test_the_checkpoint_of_something_else_ends_the_run_and_nothing_is_touched(other, tmp_path):
    newest = stopped(tmp_path / "run")
    if other == "foreign":
        torch.save({"model": torch.ones(2)}, newest)
    else:
        train(tmp_path / "other", outer_lr=0.5)
        shutil.copy(tmp_path / "other" / "checkpoints" / "step-00000006.pt", newest.parent)
    before = contents(tmp_path / "run")
    expected = (
        r"step-00000004\.pt is no state of an mtl" if other == "foreign" else r"other settings \(outer_lr: 0.5 th"
    )
    with pytest.raises(ValueError, match=expected):
        train(tmp_path / "run")
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_five_kills_at_random_moments(tmp_path):
    assert stress_kills.main(tmp_path, kills=5, seed=1)["kills"] == 5
