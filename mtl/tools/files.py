"""Writing files and folders as a whole or not at all, and errors that say what could not be written."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

_HEX = "[0-9a-f]" * 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on the size of files


def _beside(path: Path, end: str) -> Path:
    # Not tempfile: what that makes is readable by its owner only, and would stay so after the move.
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{end}")


def _matching(folder: Path, pattern: str) -> list[Path]:
    return [p for p in folder.iterdir() if fnmatchcase(p.name, pattern)]


def remove_drafts(path: str | Path) -> None:
    """Remove what killed savings of ``path`` left beside it. Nobody else may be saving it at the time.

    Args:
        path: its name may be a pattern, such as ``step-*.pt``.
    """
    path = Path(path)
    for draft in _matching(path.parent, f".{path.stem}-{_HEX}{path.suffix}"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def recover_folder(path: str | Path) -> None:
    """Put back what :func:`replacing_folder` had moved away when it was killed, and remove its drafts.

    A folder is replaced by two moves. A kill between them leaves ``path`` missing and its old contents beside it.
    """
    path = Path(path)
    for old in _matching(path.parent, f".{path.stem}-{_HEX}{path.suffix}.old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
    remove_drafts(path)


@contextmanager
def naming_failures(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Let what the system refuses say which file it was about, how much room there was, and what helps.

    Args:
        needed: bytes that ``path`` takes, where that is known.

    Raises:
        OSError: of the same number, so that its class stays (``PermissionError``, ...).
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        helps = _room(path, needed) if error.errno in _FULL else "take a folder that can be written to"
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}; {helps}") from error


def _room(path: Path, needed: int | None) -> str:
    size = "" if needed is None else f"it takes {needed:,} bytes, "
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
    return f"{size}{free:,} bytes are free there: make room"


def check_writable(folder: Path) -> None:
    """Make a folder, or see that it can be written to.

    Raises:
        OSError: it cannot.
    """
    probe = folder / ".writable"
    with naming_failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("yes")
        probe.unlink()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A draft beside ``path`` that takes its place on success and vanishes on failure; parent folders are made."""
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path, path.suffix)
    try:
        yield draft
        _flush(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``path``, old contents and all, on success and vanishes on failure.

    Killed between its two moves, it leaves the old contents beside ``path``; see :func:`recover_folder`.
    """
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft, old = _beside(path, path.suffix), _beside(path, f"{path.suffix}.old")
    draft.mkdir()
    try:
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            os.replace(path, old)  # a folder cannot be moved onto one that is not empty
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb") as f:
        os.fsync(f.fileno())  # or a power cut may leave the name without the contents
