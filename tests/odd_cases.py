"""A damaged or odd file, what reads it, and what is right: see stress_files.py."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Write = Callable[[Path], Path]
"""Makes the file in an empty folder; returns the path that is given to the reader."""

REFUSED = object()
"""The right answer is one line."""


@dataclass(frozen=True)
class Either:
    """This value, or one line: what a damage does depends on where it hits."""

    value: Any


@dataclass(frozen=True)
class Case:
    """One file.

    Args:
        kind: for the table of outcomes.
        name: unique within its kind.
        right: the value that reading gives, :data:`REFUSED`, or :class:`Either`.
    """

    kind: str
    name: str
    write: Write
    read: Callable[[Path], Any]
    right: Any


def outcome(case: Case, folder: Path) -> str:
    """``"read right"``, ``"one line"``, or what is wrong."""
    folder.mkdir(parents=True)
    path = case.write(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case.read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text.strip():
            return f"FAILED: {text.count(chr(10)) + 1} lines: {text[:160]!r}"
        if path.name not in text and folder.name not in text:
            return f"FAILED: names no file: {text[:160]!r}"
        if case.right is REFUSED or isinstance(case.right, Either):
            return "one line"
        return f"FAILED: refused, not read: {text[:160]!r}"
    except Exception as error:  # any other kind is what this looks for
        return f"FAILED: {type(error).__name__}: {str(error)[:160]!r}"
    right = case.right.value if isinstance(case.right, Either) else case.right
    if right is not REFUSED and found == right:
        return "read right"
    return f"FAILED: read as {str(found)[:100]!r}, expected {'one line' if right is REFUSED else str(right)[:100]!r}"


def put(name: str, content: bytes | str) -> Write:
    """A file with this content."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return write


def damages(content: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Names and contents: nothing, cut short, another format, a page of the web, zeros."""
    yield "empty", b""
    yield "half", content[: len(content) // 2]
    yield "all but one byte", content[:-1]
    yield "the first 8 bytes", content[:8]
    yield "a page of the web", b"<!DOCTYPE html>\n<html><body>404: not found</body></html>\n"
    yield "zeros", bytes(len(content))
    yield "a pointer of git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 132735\n"
    yield "noise", random.Random(seed).randbytes(200)


def flipped(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """One bit of a random byte is another one."""
    chance = random.Random(seed)
    for _ in range(count):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
