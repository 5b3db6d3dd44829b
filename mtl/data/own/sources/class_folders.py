"""Files by class: in one folder per class, or in train/val/test folders of such; on disk or in an archive."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mtl.data.own.sources.decoding import is_hidden
from mtl.data.own.sources.listing import some
from mtl.data.own.sources.tables import TABLES
from mtl.data.own.splits import part_named

LEVELS = (None, 1, 2)


@dataclass(frozen=True)
class ClassFiles:
    """Files by class.

    Args:
        paths: relative to the source.
        labels: the class of each.
        parts: the part of each, None without parts.
        notes: what was left out.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    parts: tuple[str | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """Relative paths of all files and folders of a source that are not hidden.

    Args:
        source: a folder, or an archive, for messages.
        by_path: whether files are in the order of their whole paths, as in archives, or class by class. The two differ
            where the name of a class is the beginning of another's.
    """

    source: str
    files: Sequence[str]
    folders: Sequence[str]
    by_path: bool = False

    @property
    def top(self) -> list[str]:
        """Names of the outermost folders."""
        return sorted(f for f in self.folders if "/" not in f and not f.startswith("__"))


def contents_of(root: Path) -> Contents:
    """What is in a folder, at any depth.

    Raises:
        OSError: a folder in it cannot be read.
    """
    found = list(_walk(root, "", frozenset()))
    return Contents(str(root), [p for p, folder in found if not folder], [p for p, folder in found if folder])


def _walk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, bool]]:
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = f"{prefix}{entry.name}"
            yield path, entry.is_dir()
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{path}/", above | {real})


def class_files(
    contents: Contents, suffixes: Collection[str], noun: str, level: int | None = None, read: Collection[str] = ()
) -> ClassFiles:
    """The files of class folders that have one of these suffixes; whatever is left out is counted in the notes.

    Args:
        noun: the word for an example, for messages.
        level: 1 when the outer folders are the classes, 2 when the folders in them are; None refuses folders that
            hold nothing but folders.
        read: names of tables beside the class folders that are read apart.

    Raises:
        ValueError: there are no class folders, or it is not clear which they are.
    """
    if level not in LEVELS:
        raise ValueError(f"class_level={level!r}: expected 1 (outer folders are the classes) or 2 (folders in them)")
    top, source = contents.top, contents.source
    divided = len(top) > 1 and all(part_named(name) for name in top)
    depth = 1 + divided
    if divided and not any(f.count("/") == 1 for f in contents.folders):
        raise ValueError(
            f"{source} has {top} without class folders in them; if a csv has the labels, pass the path of the csv"
        )
    if len(top) == 1 and level != 2:
        inner = any(f.startswith(f"{top[0]}/") for f in contents.folders)
        hint = f"; or pass {source}/{top[0]} if the classes are in there" if inner else ""
        raise ValueError(f"{source} has one sub-folder, {top[0]!r}; expected one per class, two at least{hint}")
    inside = [f for f in contents.files if f.count("/") >= depth and f.split("/")[0] in top]
    fitting = [f for f in inside if PurePosixPath(f).suffix.lower() in suffixes]
    if level is None:
        _check_level(contents, fitting, depth, noun)
    depth += level == 2
    classes = 0 if contents.by_path else depth
    found = sorted((f for f in fitting if f.count("/") >= depth), key=lambda f: (f.split("/")[:classes], f))
    names = [f.split("/")[depth - 1] for f in found]
    folders = {f.split("/")[-1] for f in contents.folders if f.count("/") == depth - 1 and f.split("/")[0] in top}
    notes = _notes(contents, suffixes, set(inside) - set(fitting), set(found), noun, read)
    if empty := sorted(map(repr, folders - set(names))):
        notes.append(f"{source}: {len(empty)} class folders without {noun}s are left out: {some(empty)}")
    parts = tuple(part_named(f.split("/")[0]) if divided else None for f in found)
    return ClassFiles(tuple(found), tuple(names), parts, tuple(notes))


def _check_level(contents: Contents, fitting: Sequence[str], depth: int, noun: str) -> None:
    """Refuse class folders that hold nothing but folders: are the classes the outer ones, or the inner ones?"""
    if not fitting or any(f.count("/") == depth for f in fitting):
        return
    folder, inner = min(fitting).split("/")[depth - 1 : depth + 1]
    raise ValueError(
        f"{contents.source}: its folders hold no {noun}s but further folders, such as {folder!r} with {inner!r}; pass "
        f"class_level=1 (--class-level 1) if {folder!r} is a class, or class_level=2 (--class-level 2) if {inner!r} is"
    )


def _notes(
    contents: Contents,
    suffixes: Collection[str],
    other: Collection[str],
    taken: Collection[str],
    noun: str,
    read: Collection[str],
) -> list[str]:
    notes, source = [], contents.source
    if other:
        kinds = Counter(PurePosixPath(f).suffix.lower() or "without suffix" for f in sorted(other))
        counts = some([f"{count} {kind}" for kind, count in kinds.most_common()])
        notes.append(f"{source}: {len(other)} files of other kinds are left out: {counts}, such as {min(other)}")
    outside = [f for f in contents.files if PurePosixPath(f).suffix.lower() in suffixes and f not in taken]
    if outside:
        notes.append(f"{source}: {len(outside)} {noun}s outside of class folders are left out, such as {min(outside)}")
    beside = sorted(f for f in contents.files if "/" not in f and f.lower().endswith(TABLES) and f not in read)
    if beside:
        notes.append(f"{source}: {some(beside)} beside the class folders, not read")
    return notes
