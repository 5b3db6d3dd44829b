"""Write files and folders as a whole or not at all, and explain failed writes."""

from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PROBE = "writable"
_EXPLAINED = " could not be written:"
_HEX = "[0-9a-f]" * 8
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, quota, limit on file sizes


def draft_of(path: Path, end: str | None = None) -> Path:
    """A new name beside ``path`` to write to before the move; ``end`` in place of its suffix."""
    # tempfile would make it readable by its owner only, also after the move
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix if end is None else end}")


def drafts_of(path: Path) -> list[Path]:
    """The drafts that killed writes of ``path`` left beside it; its name may be a pattern, such as ``step-*.pt``."""
    return list(path.parent.glob(f".{path.stem}-{_HEX}{path.suffix}"))


def remove_drafts(path: str | Path) -> None:
    """Remove the drafts that killed writes of ``path`` left beside it. No other process may be writing it.

    Args:
        path: its name may be a pattern, such as ``step-*.pt``.
    """
    for draft in drafts_of(Path(path)):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


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
        with _system_errors():
            yield
    except OSError as error:
        if error.errno is None or _EXPLAINED in str(error):  # by the function that wrote
            raise
        advice = _room(path, needed) if error.errno in _FULL else "choose a writable folder"
        raise OSError(error.errno, f"{path}{_EXPLAINED} {error.strerror or error}; {advice}") from error


@contextmanager
def _system_errors() -> Iterator[None]:
    """The writer of safetensors reports a full disk as an error of its own, and the system's number in its text."""
    try:
        yield
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def _room(path: Path, needed: int | None) -> str:
    size = "" if needed is None else f"it takes {needed:,} bytes, "
    free = shutil.disk_usage(next(p for p in path.absolute().parents if p.is_dir())).free
    return f"{size}{free:,} bytes are free there: make room"


def check_writable(folder: Path) -> None:
    """Create a folder if needed, and check that files can be written to it.

    Raises:
        OSError: they cannot.
    """
    probe = draft_of(folder / PROBE)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_text("yes")
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a draft beside ``path`` that replaces it on success and is removed on failure; creates parent folders.

    Args:
        needed: bytes that ``path`` takes, where that is known, for the message.

    Raises:
        OSError: it could not be written; the message says why, and what was there still is.
    """
    path = Path(path)
    draft = draft_of(path)
    with explain_write_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            draft.chmod(_mode_of_new_files(path.parent))
            flush(draft)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_whole(path: str | Path, contents: bytes) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: it could not be written; the message says why, and what was there still is.
    """
    with atomic_write(path, len(contents)) as draft:
        draft.write_bytes(contents)


def _mode_of_new_files(folder: Path) -> int:
    """What umask makes of them: safetensors hides its files from others, and reading umask would set it."""
    probe = draft_of(folder / "mode")
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` with all its contents on success and is removed on failure.

    Raises:
        FileExistsError: ``path`` is there and not an empty folder; nothing of it is ever replaced.
        OSError: it could not be written; the message says why, and nothing is left.
    """
    path = Path(path)
    draft = draft_of(path)
    check_free(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        try:
            yield draft
            mode = _mode_of_new_files(draft)
            for file in draft.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
                    flush(file)
            check_free(path)
            if path.exists():
                path.rmdir()
            os.replace(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_free(folder: str | Path) -> None:
    """Refuse a folder in whose place files would be lost.

    Raises:
        FileExistsError: it is there, and not an empty folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is already there and would be replaced; remove it or choose another folder")


def write_csv(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write a CSV file atomically: one line per record; what a record lacks of the columns of the others is empty."""
    columns = list(dict.fromkeys(column for record in records for column in record))
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)


def flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("rb") as f:
        os.fsync(f.fileno())  # otherwise a power cut may leave an empty file of that name
