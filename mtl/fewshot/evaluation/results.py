"""Results of methods, chunk by chunk: in memory, and in a file where a comparison that was killed finds them again."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtl.episode import Episode, TaskSource
from mtl.fewshot.baselines import Method
from mtl.tools.files import explain_write_errors, remove_drafts, write_whole
from mtl.tools.identity import digest, identity_of
from mtl.tools.lock import folder_lock
from mtl.tools.reliability import Answers

FILE = "results.jsonl"


def families_of(episode: Episode) -> tuple[str, ...]:
    """The families of an episode; they are all one family where the source names none."""
    return episode.families or ("tasks",) * episode.tasks


@dataclass(frozen=True)
class Result:
    """What one method did on some tasks of a chunk, those of equal shape.

    Args:
        chunk: first task and last task.
        tasks: by number.
        families: of these tasks.
        ways: classes per task.
        accuracy: of each task, in ``0 .. 1``.
        seconds: in all.
        missing: tasks with an answer that was not finite.
        answers: how sure it was of each, for a method that has probabilities.
    """

    chunk: tuple[int, int]
    tasks: tuple[int, ...]
    families: tuple[str, ...]
    ways: int
    accuracy: tuple[float, ...]
    seconds: float
    missing: int
    answers: Answers | None = None


class Results:
    """All results of a comparison so far. Nothing is kept when the process ends."""

    file: Path | None = None

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[int, int], list[Result]]] = {}

    def hold(self) -> AbstractContextManager[None]:
        """Keep others from adding to the same results."""
        return nullcontext()

    def add(self, method: Method, result: Result) -> None:
        self._found.setdefault(method.name, {}).setdefault(result.chunk, []).append(result)

    def of(self, method: Method, chunk: Sequence[int] = ()) -> list[Result]:
        """Of a method on one chunk, or on all."""
        found = self._found.get(method.name, {})
        return found.get((chunk[0], chunk[-1]), []) if chunk else [r for results in found.values() for r in results]

    def complete(self, method: Method, chunk: Sequence[int]) -> bool:
        return sum(len(r.tasks) for r in self.of(method, chunk)) == len(chunk)


class KeptResults(Results):
    """Results that are kept in a folder, one line each; those of other methods, tasks or weights are passed over.

    A line is added once a method is through with a chunk, so a kill loses what one method did on one chunk at most.
    Methods without an identity are not kept.

    Raises:
        ValueError: something that a method or the tasks depend on could not be recognised by another process.
    """

    def __init__(self, folder: Path, methods: Iterable[Method], tasks: TaskSource, setting: str) -> None:
        super().__init__()
        self._path = folder / FILE
        self.file = self._path
        source = identity_of(tasks)
        self._keys = {m.name: _key(m, source, setting) for m in methods if m.identity is not None}
        self._names = {key: name for name, key in self._keys.items()}
        self._read(warn=True)

    def hold(self) -> AbstractContextManager[None]:
        return folder_lock(self._path.parent)

    def tidy(self) -> None:
        """Take what others added, and remove what kills left half done. Hold the folder."""
        remove_drafts(self._path)
        self._found.clear()
        lines, whole = self._read()
        if not whole:
            write_whole(self._path, b"".join(lines))

    def add(self, method: Method, result: Result) -> None:
        super().add(method, result)
        if (key := self._keys.get(method.name)) is not None:
            answers = {} if result.answers is None else result.answers.to_json()
            line = _line({"method": method.name, "key": key, **_numbers(result), **answers})
            with explain_write_errors(self._path, len(line)), self._path.open("ab") as f:
                f.write(line)

    def _read(self, warn: bool = False) -> tuple[list[bytes], bool]:
        """The whole lines of the file, and whether there is nothing else in it."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        records = [_record(line) for line in lines]
        for record in records:
            if record is not None and (name := self._names.get(record["key"])) is not None:
                result = _result_of(record)
                known = self._found.setdefault(name, {}).setdefault(result.chunk, [])
                if result.tasks not in [r.tasks for r in known]:
                    known.append(result)
        damaged = [i for i, r in enumerate(records) if r is None and lines[i].endswith(b"\n")]
        if damaged and warn:
            more = f"; {len(damaged)} lines, such as line {damaged[0] + 1}"
            warnings.warn(f"{self._path} is damaged and what is lost is measured again{more}", stacklevel=5)
        return [line for line, r in zip(lines, records, strict=True) if r is not None], None not in records


def _key(method: Method, tasks: dict[str, Any], setting: str) -> str:
    assert method.identity is not None
    # Of methods that have probabilities, lines without them are measured again.
    version = () if method.logits is None else ("probabilities",)
    return digest(method.name, method.kind, method.tuned, method.identity(), tasks, setting, *version)


def _result_of(record: dict[str, Any]) -> Result:
    values = {f.name: record[f.name] for f in fields(Result) if f.name != "answers"}
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Result(**frozen, answers=Answers.from_json(record) if "confidence" in record else None)


def _numbers(result: Result) -> dict[str, Any]:
    return {f.name: getattr(result, f.name) for f in fields(Result) if f.name != "answers"}


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record)
    return (json.dumps(record | {"check": zlib.crc32(text.encode())}) + "\n").encode()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is not as it was written, or not written to its end."""
    try:
        record = json.loads(line)
        check = record.pop("check")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return record if line.endswith(b"\n") and check == zlib.crc32(json.dumps(record).encode()) else None
