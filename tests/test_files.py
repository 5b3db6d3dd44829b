"""Whole or not at all, and what a kill leaves behind."""

from __future__ import annotations

import pytest

from mtl.files import remove_drafts, replacing, replacing_folder


def drafts_of_a_kill(path, opened, monkeypatch) -> None:
    """Save in a process that dies: nothing after the kill is run, the tidying of the draft neither."""
    with monkeypatch.context() as patched:
        patched.setattr("mtl.files.shutil.rmtree", lambda *_, **__: None)
        patched.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        saving = opened(path)
        draft = saving.__enter__()
        (draft / "half" if draft.is_dir() else draft).write_text("half")
        saving.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def names(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["last.pt", "a+b.tar.gz", "no suffix"])
def test_drafts_of_a_file_are_removed(name, tmp_path, monkeypatch):
    drafts_of_a_kill(tmp_path / name, replacing, monkeypatch)
    assert len(names(tmp_path)) == 1
    remove_drafts(tmp_path / name)
    assert names(tmp_path) == set()


def test_drafts_of_a_folder_are_removed_once_it_is_there(tmp_path, monkeypatch):
    drafts_of_a_kill(tmp_path / "best", replacing_folder, monkeypatch)
    remove_drafts(tmp_path / "best")  # for all it knows, the kill came between the two moves
    assert len(names(tmp_path)) == 1
    with replacing_folder(tmp_path / "best") as draft:
        (draft / "whole").touch()
    remove_drafts(tmp_path / "best")
    assert names(tmp_path) == {"best"}
    assert names(tmp_path / "best") == {"whole"}


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
