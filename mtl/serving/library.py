"""Tasks by name: so many of them in memory, the others in their files until somebody asks for them."""

from __future__ import annotations

import tempfile
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mtl.fewshot import AdaptedTask
from mtl.serving.tensors import Interned, outline, restored, spilled
from mtl.tools.hints import did_you_mean

SUFFIX = ".mtl"


class Entry:
    """One version of a task. Whoever holds it can still ask it when the library has another one of this name.

    Args:
        name: of the task.
        path: of its file; None for one that was given as it is.
        task: where it was.
    """

    def __init__(self, name: str, path: Path | None, task: AdaptedTask | None = None) -> None:
        self.name, self.path, self.task = name, path, task
        self.stamp = None if path is None else stamp_of(path)  # of the version in the file, before it is read
        self.outline: AdaptedTask | None = None  # of a task that was given as it is, while its tensors are on disk
        self.lock = threading.Lock()


class TaskLibrary:
    """Named tasks of one network, for many threads.

    Args:
        read: of the file of a task.
        capacity: tasks whose tensors are kept in memory. Those that were asked for longest ago are left to their files,
            or written to a folder that goes with the library.

    Raises:
        ValueError: a capacity below 1.
    """

    def __init__(self, read: Callable[[Path], AdaptedTask], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: expected at least 1 task in memory")
        self._read, self.capacity = read, capacity
        self._entries: dict[str, Entry] = {}
        self._folder: Path | None = None
        self._removed: dict[str, Stamp | None] = {}  # files that stayed in the folder when their tasks were removed
        self._recent: OrderedDict[Entry, None] = OrderedDict()
        self._interned = Interned()
        self._lock = threading.Lock()
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        self._closed = False

    def add(self, name: str, task: AdaptedTask | Path) -> None:
        """Add a task, or put it in the place of another one; requests under way finish with the one they began with.

        A file is read now, so that a damaged one is refused now.
        """
        if isinstance(task, Path):
            entry = Entry(name, task)
            self.task_of(entry)
        else:
            entry = Entry(name, None, task.map_tensors(self._interned.one))
        with self._lock:
            self._forget(self._entries.get(name))
            self._entries[name] = entry
            self._removed.pop(name, None)
        self._note_use(entry)

    def follow(self, folder: Path) -> None:
        """Have the tasks whose files are in a folder, each by the stem of its name, read when it is asked for.

        A file that comes, changes or goes later counts from the next question on.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        task_files(folder)
        with self._lock:
            self._folder = folder
            self._look()

    def remove(self, name: str) -> None:
        """Forget a task; its file stays.

        Raises:
            KeyError: there is no such task.
        """
        with self._lock:
            self._forget(self._found(name))
            del self._entries[name]
            if self._folder is not None:
                self._removed[name] = stamp_of(self._folder / f"{name}{SUFFIX}")

    def find(self, names: Iterable[str]) -> list[Entry]:
        """The tasks of these names as they are now, all of one moment.

        Raises:
            KeyError: there is no task of a name; one line, with names that look like it.
            RuntimeError: closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is closed and answers no more; open a new one")
            names = list(names)
            found = {name: self._found(name) for name in dict.fromkeys(names)}
            return [found[name] for name in names]

    def task_of(self, entry: Entry) -> AdaptedTask:
        """The task itself, read from its file if need be."""
        with entry.lock:
            task = entry.task
            if task is None:
                task = entry.task = self._from_disk(entry).map_tensors(self._interned.one)
        self._note_use(entry)
        return task

    def __contains__(self, name: object) -> bool:
        with self._lock:
            if isinstance(name, str):
                self._notice(name)
            return name in self._entries

    def __len__(self) -> int:
        with self._lock:
            self._look()
            return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._look()
            return iter(sorted(self._entries))

    @property
    def in_memory(self) -> int:
        """Tasks whose tensors are in memory."""
        return len(self._recent)

    def close(self) -> None:
        """Find no more tasks, and remove what was written to disk."""
        with self._lock:
            spill, self._spill, self._closed = self._spill, None, True
        if spill is not None:
            spill.cleanup()

    def _found(self, name: str) -> Entry:
        self._notice(name)
        if (entry := self._entries.get(name)) is not None:
            return entry
        self._look()
        hint = did_you_mean(name, self._entries, 3, show=repr) or f"there are {len(self._entries)} tasks"
        raise UnknownTask(f"no task is named {name!r}; {hint}")

    def _look(self) -> None:
        """Notice what became of every file in the folder."""
        if self._folder is not None:
            for name in {path.stem for path in self._folder.glob(f"*{SUFFIX}")} | set(self._entries):
                self._notice(name)

    def _notice(self, name: str) -> None:
        """Notice that the file of a name in the folder has come, changed or gone, unless another task has the name."""
        if self._folder is None or Path(name).name != name:  # a name never leads out of the folder
            return
        path, entry = self._folder / f"{name}{SUFFIX}", self._entries.get(name)
        if entry is not None and entry.path != path:
            return
        stamp = stamp_of(path)
        if stamp == (self._removed.get(name) if entry is None else entry.stamp):
            return
        self._forget(self._entries.pop(name, None))
        if stamp is not None:
            self._entries[name] = Entry(name, path)

    def _forget(self, entry: Entry | None) -> None:
        if entry is not None:
            self._recent.pop(entry, None)

    def _note_use(self, entry: Entry) -> None:
        """It was asked for last; those that were asked for longest ago make room."""
        with self._lock:
            if self._entries.get(entry.name) is entry:
                self._recent[entry] = None
                self._recent.move_to_end(entry)
            over = [self._recent.popitem(last=False)[0] for _ in range(len(self._recent) - self.capacity)]
        for old in over:
            self._let_go(old)

    def _let_go(self, entry: Entry) -> None:
        with entry.lock:
            if entry.path is None and entry.task is not None:
                try:
                    path = spilled(entry.task, self._spill_folder())
                    weakref.finalize(entry, path.unlink, missing_ok=True)  # nobody else reads it
                    entry.path, entry.outline = path, outline(entry.task)
                except OSError as error:
                    warnings.warn(f"task {entry.name!r} stays in memory: it cannot be written ({error})", stacklevel=2)
                    return
            entry.task = None

    def _from_disk(self, entry: Entry) -> AdaptedTask:
        assert entry.path is not None
        return self._read(entry.path) if entry.outline is None else restored(entry.outline, entry.path)

    def _spill_folder(self) -> Path:
        with self._lock:
            if self._spill is None:
                self._spill = tempfile.TemporaryDirectory(prefix="mtl-tasks-", ignore_cleanup_errors=True)
            return Path(self._spill.name)


Stamp = tuple[int, int, int]
"""What tells versions of a file apart."""


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no file, or can be none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class UnknownTask(KeyError):
    """No task has this name."""

    def __str__(self) -> str:  # KeyError would put quotes around the sentence
        return str(self.args[0])


def task_files(folder: Path) -> list[Path]:
    """The files of tasks in a folder, not in folders inside it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        what = "a file; pass {name: path}" if folder.exists() else "not there"
        raise FileNotFoundError(f"{folder}: expected a folder of {SUFFIX} files, and it is {what}")
    return sorted(folder.glob(f"*{SUFFIX}"))
