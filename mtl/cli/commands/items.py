"""Images or texts that a command reads, whichever the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

import mtl
from mtl.cli.training.reading import Reading
from mtl.cli.training.settings import check_data
from mtl.data import read_texts
from mtl.items import as_image, image_files

Files = Annotated[Reading, tyro.conf.OmitArgPrefixes]  # --encoding, --class-level


@dataclass(frozen=True)
class Columns:
    """Where a table has no usual names for its columns."""

    text_column: str | None = None  # column of texts
    image_column: str | None = None  # column of images or their file names
    label_column: str | None = None  # column of labels
    image_folder: str | None = None  # what the file names of a table are relative to; its own folder when not given


@dataclass(frozen=True)
class ItemOptions(Columns):
    """Where a table has no usual names for its columns, and how files are read."""

    reading: Files = field(default_factory=Reading)


Items = Annotated[ItemOptions, tyro.conf.OmitArgPrefixes]


def check_columns(backbone: mtl.Backbone, *, text_column: str | None, image_column: str | None) -> None:
    """Refuse an option about texts for a network that reads images, and the other way round.

    Raises:
        ValueError: one line.
    """
    other = {"--text-column": text_column} if reads_images(backbone) else {"--image-column": image_column}
    for flag, value in other.items():
        if value is not None:
            raise ValueError(f"{flag} {value}: {backbone.name} reads {backbone.adapter.reads}")


def reads_images(backbone: mtl.Backbone) -> bool:
    """Whether it reads images; else texts.

    Raises:
        ValueError: it reads neither.
    """
    if (reads := backbone.adapter.reads) not in ("images", "texts"):
        raise ValueError(f"{backbone.name} reads {reads}; the command line knows images and texts, use Python for it")
    return reads == "images"


def labelled(path: str, backbone: mtl.Backbone, options: ItemOptions) -> mtl.data.AbstractCollection:
    """Examples by class; what cannot be read is left out, and named in its notes."""
    check_columns(backbone, text_column=options.text_column, image_column=options.image_column)
    files = vars(options.reading)
    if reads_images(backbone):
        columns = {"image_column": options.image_column, "image_folder": options.image_folder}
        return mtl.open_images(path, label_column=options.label_column, verify="decode", **columns, **files)
    return mtl.open_texts(path, text_column=options.text_column, label_column=options.label_column, **files)


def unlabelled(path: str, backbone: mtl.Backbone, options: ItemOptions) -> list[Any]:
    """Texts, or paths of images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is nothing to read in it.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not reads_images(backbone):
        return list(read_texts(place, options.text_column, options.reading.encoding))
    return image_files(place) if place.is_dir() else [place]


def check_paths(**paths: str | None) -> None:
    """Look for what options name, before a network is loaded."""
    for name, path in paths.items():
        if name == "data":
            check_data([path] if path else [])
        elif path is not None and not Path(path).exists():
            raise FileNotFoundError(f"--{name.replace('_', '-')} {path}: no such file or folder")


def readable(items: Iterable[Any], read: list[Any], unreadable: list[str]) -> Iterator[Any]:
    """Texts, and images that can be decoded; what was read is noted in one list, the names of the rest in the other."""
    for item in items:
        try:
            found = item if isinstance(item, str) else as_image(item)
        except ValueError:
            unreadable.append(str(item))
        else:
            read.append(item)
            yield found
