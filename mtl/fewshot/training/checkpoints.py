"""The files of a run: its metrics, and its last two checkpoints, of which the newest intact one is read."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from mtl.tools.files import explain_write_errors, write_whole

METRICS = "metrics.jsonl"  # one line of JSON per outer step
KIND = "state of an mtl training run"
_END_OF_ZIP = b"PK\x05\x06"
_NAME = re.compile(r"step-(\d{8,})\.pt")


class Checkpoints:
    """``checkpoints/step-00000050.pt`` and the one before it.

    Two, because a file that was intact when it was written may not be when it is read.

    Args:
        run: the folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"
        self._whole: Path | None = None  # the last one written, or the one that was read

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, and remove all checkpoints older than the one before it.

        Raises:
            OSError: it could not be written; the earlier checkpoints are untouched.
        """
        path = self.path(state["step"])
        # Serialised in memory first, which is affordable because the generator is small: torch's own writer reports a
        # full disk as an internal error of its archive.
        write_whole(path, _sealed(state))
        for other in self._files():
            if other not in (path, self._whole) and _step(other) < state["step"]:
                other.unlink()
        self._whole = path

    def newest(self) -> dict[str, Any] | None:
        """The newest intact state, None where nothing was saved. Warns of each damaged file that it passes over.

        Raises:
            ValueError: a file belongs to another program, or all are damaged. Nothing is changed.
        """
        damaged: dict[Path, str] = {}
        for path in self._files():
            try:
                state = _read(path)
            except FileNotFoundError:  # another run has just replaced it
                continue
            except _Damaged as error:
                damaged[path] = str(error)
                continue
            for other, why in damaged.items():
                warnings.warn(f"{other} cannot be read ({why}); the run goes on from {path.name}", stacklevel=3)
            self._whole = path
            return state
        if damaged:
            listed = "; ".join(f"{path}: {why}" for path, why in damaged.items())
            raise ValueError(
                f"no checkpoint of this run can be read ({listed}). Nothing was changed: bring one of these files back "
                f"from a copy, or give the run another folder to begin anew"
            )
        return None

    def _files(self) -> list[Path]:
        """All checkpoints, newest first."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((p for p in there if _NAME.fullmatch(p.name)), key=_step, reverse=True)


class _Damaged(Exception):
    """The file is not as it was written."""


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found
    return int(found[1])


def _sealed(state: dict[str, Any]) -> bytes:
    """A file that torch.load reads, with a checksum of the whole as the comment of its zip archive."""
    buffer = io.BytesIO()
    torch.save({"kind": KIND} | state, buffer)
    contents = buffer.getbuffer()
    contents[-2:] = _SEAL_LENGTH.to_bytes(2, "little")  # of the comment; there is none yet
    return b"".join([contents, _seal(contents)])


def _seal(contents: memoryview) -> bytes:
    return KIND.encode() + hashlib.sha256(contents).digest()


_SEAL_LENGTH = len(_seal(memoryview(b"")))


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Damaged(error.strerror) from error
    view = memoryview(contents)
    if view[-_SEAL_LENGTH:] == _seal(view[:-_SEAL_LENGTH]):
        return torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    if KIND.encode() in contents:
        raise _Damaged("its checksum is wrong")
    if _END_OF_ZIP not in contents:
        raise _Damaged(f"its end is missing after {len(contents):,} bytes")
    raise ValueError(f"{path} is no {KIND}; move it elsewhere, or give this run another folder")


def append(path: Path, metrics: dict[str, float]) -> None:
    """Add a line of metrics."""
    with explain_write_errors(path), path.open("a") as f:
        f.write(json.dumps(metrics) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that will be repeated, and set lines aside that are none.

    A last line without an end, which a kill or a full disk cut short, is of such a step.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    steps = [_step_of(line) for line in lines]
    damaged = [line for line, found in zip(lines, steps, strict=True) if found is None]
    if damaged:
        aside = path.with_name(f"{path.stem}-damaged{path.suffix}")
        with explain_write_errors(aside), aside.open("ab") as f:
            f.writelines(damaged)
        warnings.warn(
            f"{path}: {len(damaged)} of {len(lines)} lines do not tell the metrics of a step, such as line "
            f"{steps.index(None) + 1}; they are in {aside.name} now",
            stacklevel=4,
        )
    kept = b"".join(line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step)
    if kept != path.read_bytes():
        write_whole(path, kept)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run, step by step; lines that are damaged are left out."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step_of(line) is not None]


def _step_of(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
