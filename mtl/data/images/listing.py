"""What a source holds before anything is checked, what may be asked of it, and how columns and folders are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mtl.data.images.collection import Reader

IMAGE_COLUMNS = ("image", "img", "filename", "file_name", "file", "path", "image_path", "filepath")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")


@dataclass(frozen=True)
class Options:
    """What :func:`~mtl.data.images.open_images` was told about the source."""

    image_column: str | None
    label_column: str | None
    image_folder: Path | None
    split: str | None
    config: str | None


@dataclass(frozen=True)
class Listing:
    """What a source holds, unchecked: image ``i`` has class ``labels[i]`` and is in ``parts[i]``, or in no part."""

    source: str
    reader: Reader
    labels: Sequence[str]
    parts: Sequence[str | None]


@dataclass(frozen=True)
class Files:
    """Image files by position."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


def folders_in(root: Path) -> list[Path]:
    """Folders in a folder, but for hidden ones and such as ``__MACOSX``."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def column_of(names: Iterable[str], asked: str | None, usual: Sequence[str], role: str, where: str) -> str:
    """The column that is asked for, or else the only one that goes by a usual name."""
    names = list(names)
    found = [k for k in names if (k == asked if asked is not None else k.lower() in usual or k in usual)]
    if len(found) == 1:
        return found[0]
    what = f"no column {asked!r}" if asked is not None else f"{len(found) or 'no'} columns that may be the {role}"
    raise ValueError(f"{where} has {what} among {names}; name one with {role}_column=")
