"""Images inside a zip archive, read without unpacking it."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from mtl.data.own.images.files import SUFFIXES


@dataclass(frozen=True)
class ZippedFiles:
    """Images of an archive by position; every process opens the archive for itself."""

    archive: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.archive}/{self.names[index]}"

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.contents(index)))

    def contents(self, index: int) -> bytes:
        return _opened(self.archive, os.getpid()).read(self.names[index])


def class_members(archive: Path) -> list[tuple[str, str]]:
    """Class and member name of the images in an archive of class folders, which may lie in one folder together.

    Raises:
        ValueError: the file is no zip archive, or has fewer than two class folders.
    """
    try:
        names = _opened(str(archive), os.getpid()).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{archive} is no readable zip archive ({error}); pack it anew, or unpack it") from error
    members = sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES and not _hidden(n))
    depth = 0
    while len({n.split("/")[depth] for n in members if n.count("/") > depth}) == 1:
        depth += 1
    found = [(n.split("/")[depth], n) for n in members if n.count("/") > depth]
    if not found:
        raise ValueError(f"{archive} has no two folders of images; expected one folder per class")
    return found


@lru_cache(maxsize=32)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    # By process: forked ones would share the position in the file. Threads may share, ZipFile has a lock.
    return zipfile.ZipFile(archive)


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
