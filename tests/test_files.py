"""Whole or not at all, and what a kill leaves behind."""

from __future__ import annotations

import errno

import pytest

from mtl.tools.files import atomic_folder, atomic_write, explain_write_errors, remove_drafts


def drafts_of_a_kill(path, opened, monkeypatch) -> None:
    """Save in a process that dies: nothing after the kill is run, the tidying of the draft neither."""
    with monkeypatch.context() as patched:
        patched.setattr("mtl.tools.files.shutil.rmtree", lambda *_, **__: None)
        patched.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        saving = opened(path)
        draft = saving.__enter__()
        (draft / "half" if draft.is_dir() else draft).write_text("half")
        saving.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def names(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["last.pt", "a+b.tar.gz", "no suffix"])
def test_drafts_of_a_file_are_removed(name, tmp_path, monkeypatch):
    drafts_of_a_kill(tmp_path / name, atomic_write, monkeypatch)
    assert len(names(tmp_path)) == 1
    remove_drafts(tmp_path / name)
    assert names(tmp_path) == set()


def test_drafts_of_a_folder_are_removed(tmp_path, monkeypatch):
    drafts_of_a_kill(tmp_path / "best", atomic_folder, monkeypatch)
    assert len(names(tmp_path)) == 1
    remove_drafts(tmp_path / "best")
    assert names(tmp_path) == set()


def test_a_folder_is_never_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as draft:
        (draft / "new").touch()
    assert names(tmp_path / "empty") == {"new"}
    with pytest.raises(FileExistsError, match="empty is already there and would be replaced"):
        atomic_folder(tmp_path / "empty").__enter__()
    late = atomic_folder(tmp_path / "late")
    late.__enter__()
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "of another process").touch()
    with pytest.raises(FileExistsError):
        late.__exit__(None, None, None)
    assert names(tmp_path / "late") == {"of another process"}
    assert names(tmp_path) == {"empty", "late"}


def test_a_pattern_of_names_removes_the_drafts_of_all(tmp_path):
    for name in (".step-1-0123abcd.pt", ".step-22-0123abcd.pt", ".step-1-0123abcd.json", "step-1-0123abcd.pt"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path / "step-*.pt")
    assert names(tmp_path) == {".step-1-0123abcd.json", "step-1-0123abcd.pt"}


def test_what_cannot_be_written_is_named(tmp_path):
    full = r"a\.pt could not be.*No space.*takes 1,234 bytes, [\d,]+ bytes are free"
    with pytest.raises(OSError, match=full) as raised, explain_write_errors(tmp_path / "new" / "a.pt", 1234):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    forbidden = r"a\.pt could not be written: no; choose a writable folder"
    with pytest.raises(PermissionError, match=forbidden), explain_write_errors(tmp_path / "a.pt"):
        raise PermissionError(errno.EACCES, "no")


def test_nothing_else_is_removed(tmp_path):
    others = [
        ".last-0123abc.pt",
        ".last-0123abcd.pth",
        ".last-0123abcdx.pt",
        ".lastx-0123abcd.pt",
        "last.pt",
        ".last.pt",
    ]
    for name in [*others, ".last-0123abcd.pt"]:
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / ".last-0123abcd.pt").touch()
    remove_drafts(tmp_path / "last.pt")
    assert names(tmp_path) == {*others, "inside"}
    assert names(tmp_path / "inside") == {".last-0123abcd.pt"}
