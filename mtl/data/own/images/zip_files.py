"""Images inside a zip archive, read without unpacking it."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from mtl.data.own.images.duplicates import ContentReader
from mtl.data.own.images.files import SUFFIXES
from mtl.data.own.sources.class_folders import ClassFiles, Contents, class_files
from mtl.data.own.sources.decoding import is_hidden
from mtl.data.own.sources.listing import Listing, Options


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

    def likeness(self, index: int) -> tuple[int, int]:
        member = _opened(self.archive, os.getpid()).getinfo(self.names[index])
        return member.file_size, member.CRC

    def contents(self, index: int) -> bytes:
        return _opened(self.archive, os.getpid()).read(self.names[index])


def from_zip(archive: Path, options: Options) -> Listing[ContentReader]:
    """Class folders in an archive, or train/val/test folders of such."""
    folder, found = class_members(archive, options.class_level)
    reader = ZippedFiles(str(archive), tuple(folder + path for path in found.paths))
    return Listing(str(archive), reader, found.labels, found.parts, found.notes)


def class_members(archive: Path, level: int | None = None) -> tuple[str, ClassFiles]:
    """The folder that the class folders of an archive lie in together, and the images in them relative to it.

    Args:
        level: see :func:`~mtl.data.own.sources.class_folders.class_files`.

    Raises:
        ValueError: the file is no zip archive, or has fewer than two class folders.
    """
    try:
        names = _opened(str(archive), os.getpid()).namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{archive} is no readable zip archive ({error}); pack it anew, or unpack it") from error
    names = sorted({n for n in names if not is_hidden(n.rstrip("/"))})
    images = [n for n in names if n.lower().endswith(tuple(SUFFIXES))]
    folder = ""
    while len(tops := {n[len(folder) :].split("/")[0] for n in images if n.startswith(folder)}) == 1:
        if f"{folder}{min(tops)}" in images:
            break
        folder += f"{min(tops)}/"
    inside = [n.removeprefix(folder) for n in names if n.startswith(folder) and n != folder]
    if not any("/" in n for n in inside):
        raise ValueError(f"{archive} has no two folders of images; expected one folder per class")
    files = [n for n in inside if not n.endswith("/")]
    folders = {n[:i] for n in inside for i, c in enumerate(n) if c == "/"}
    found = class_files(Contents(str(archive), files, sorted(folders), by_path=True), SUFFIXES, "image", level)
    return folder, found


@lru_cache(maxsize=32)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    # By process: forked ones would share the position in the file. Threads may share, ZipFile has a lock.
    return zipfile.ZipFile(archive)
