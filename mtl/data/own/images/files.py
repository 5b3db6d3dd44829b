"""Images in files: in one folder per class, or named in a csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mtl.data.own.images.collection import Reader
from mtl.data.own.sources.csv_tables import csv_rows
from mtl.data.own.sources.listing import LABEL_COLUMNS, Listing, Options, column_of
from mtl.data.own.sources.paths import class_files, folders_in
from mtl.data.own.splits import class_labels
from mtl.items import IMAGE_SUFFIXES

SUFFIXES = IMAGE_SUFFIXES
IMAGE_COLUMNS = ("image", "img", "filename", "file_name", "file", "path", "image_path", "filepath")


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

    def contents(self, index: int) -> bytes:
        return Path(self.paths[index]).read_bytes()


def from_folders(root: Path) -> Listing[Reader]:
    """Class folders, or train/val/test folders of such."""
    found = class_files(root, SUFFIXES, "image")
    reader = Files(tuple(path for _, _, path in found))
    return Listing(str(root), reader, [label for _, label, _ in found], [part for part, _, _ in found])


def from_csv(files: Mapping[str | None, Path], options: Options) -> Listing[Reader]:
    """The images named in tables, by the part that each table is."""
    rows: dict[str, tuple[str, str | None]] = {}
    for part, file in files.items():
        columns, table = csv_rows(file)
        image = column_of(columns, options.column, IMAGE_COLUMNS, "image", str(file))
        label = column_of(columns, options.label_column, LABEL_COLUMNS, "label", str(file))
        names, labels = [row[image] or "" for row in table], [row[label] for row in table]
        base = options.image_folder or image_folder(file, names)
        for name, label in zip(names, class_labels(labels, str(file)), strict=True):
            known, _ = rows.setdefault(str(base / name), (label, part))
            if known != label:
                raise ValueError(f"{file}: {name} is listed under {known!r} and {label!r}; each image needs one class")
    source = ", ".join(map(str, files.values()))
    labels, parts = zip(*rows.values(), strict=True) if rows else ((), ())
    return Listing(source, Files(tuple(rows)), labels, parts)


def image_folder(file: Path, names: Sequence[str]) -> Path:
    """The folder that holds the first file named in a csv: that of the csv, or one in it."""
    candidates = [file.parent, *folders_in(file.parent)]
    for folder in candidates:
        if names and (folder / names[0]).is_file():
            return folder
    raise ValueError(
        f"{file} names {names[0] if names else None!r}, which is not in {file.parent} nor a folder in it; "
        "pass image_folder=, and see that names carry their suffix"
    )
