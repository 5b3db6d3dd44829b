"""Writing files and folders as a whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _beside(path: Path) -> Path:
    # Not tempfile: what that makes is readable by its owner only, and would stay so after the move.
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")


def remove_drafts(path: str | Path) -> None:
    """Remove what killed savings of ``path`` left beside it. Nobody else may be saving it at the time.

    A folder is replaced by two moves, and a kill between them leaves its only copies in drafts: while ``path`` is
    missing, folders stay.
    """
    path = Path(path)
    draft_name = re.compile(rf"\.{re.escape(path.stem)}-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for draft in list(path.parent.iterdir()):
        if draft_name.fullmatch(draft.name):
            if not draft.is_dir():
                draft.unlink(missing_ok=True)
            elif path.exists():
                shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A draft beside ``path`` that takes its place on success and vanishes on failure; parent folders are made."""
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path)
    try:
        yield draft
        with draft.open("rb") as f:
            os.fsync(f.fileno())  # or a power cut may leave the name without the contents
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``path``, old contents and all, on success and vanishes on failure."""
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    draft, old = _beside(path), _beside(path)
    draft.mkdir()
    try:
        yield draft
        if path.exists():
            os.replace(path, old)  # a folder cannot be moved onto one that is not empty
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
