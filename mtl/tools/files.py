"""Write files and folders as a whole or not at all, and explain failed writes."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HEX = "[0-9a-f]" * 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, quota, limit on file sizes


def _draft(path: Path, end: str) -> Path:
    # tempfile would make it readable by its owner only, also after the move
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{end}")


def remove_drafts(path: str | Path) -> None:
    """Remove the drafts that killed writes of ``path`` left beside it. No other process may be writing it.

    Args:
        path: its name may be a pattern, such as ``step-*.pt``.
    """
    path = Path(path)
    for draft in list(path.parent.glob(f".{path.stem}-{_HEX}{path.suffix}")):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def recover_folder(path: str | Path) -> None:
    """Restore a folder whose :func:`atomic_folder` was killed, and remove its drafts.

    A folder is replaced by two moves. A kill between them leaves ``path`` missing and its old contents beside it.
    """
    path = Path(path)
    for old in list(path.parent.glob(f".{path.stem}-{_HEX}{path.suffix}.old")):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
    remove_drafts(path)


@contextmanager
def explain_write_errors(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Add the file, the free disk space and a way out to the system's error message.

    Args:
        needed: bytes that ``path`` takes, where that is known.

    Raises:
        OSError: with the same errno, and so of the same class (``PermissionError``, ...).
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        advice = _room(path, needed) if error.errno in _FULL else "choose a writable folder"
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}; {advice}") from error


def _room(path: Path, needed: int | None) -> str:
    size = "" if needed is None else f"it takes {needed:,} bytes, "
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
    return f"{size}{free:,} bytes are free there: make room"


def check_writable(folder: Path) -> None:
    """Create a folder if needed, and check that files can be written to it.

    Raises:
        OSError: they cannot.
    """
    probe = folder / ".writable"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("yes")
        probe.unlink()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a draft beside ``path`` that replaces it on success and is removed on failure; creates parent folders."""
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path, path.suffix)
    try:
        yield draft
        _flush(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | Path, contents: bytes) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: it could not be written; the message says why, and what was there still is.
    """
    with explain_write_errors(path, len(contents)), atomic_write(path) as draft:
        draft.write_bytes(contents)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` with all its contents on success and is removed on failure.

    A kill between its two moves leaves the old contents beside ``path``; see :func:`recover_folder`.
    """
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft, old = _draft(path, path.suffix), _draft(path, f"{path.suffix}.old")
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


def write_csv(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write a CSV file atomically: one line per record; what a record lacks of the columns of the others is empty."""
    columns = list(dict.fromkeys(column for record in records for column in record))
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)


def _flush(file: Path) -> None:
    with file.open("rb") as f:
        os.fsync(f.fileno())  # otherwise a power cut may leave an empty file of that name
