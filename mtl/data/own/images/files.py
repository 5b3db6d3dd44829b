"""Images in files: in one folder per class, or named in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from mtl.data.own.class_labels import class_labels
from mtl.data.own.images.duplicates import ContentReader
from mtl.data.own.sources.class_folders import class_files, contents_of
from mtl.data.own.sources.listing import LABEL_COLUMNS, Listing, Options, column_of
from mtl.data.own.sources.paths import folders_in
from mtl.data.own.sources.tables import Table, read_table
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

    def likeness(self, index: int) -> int:
        return Path(self.paths[index]).stat().st_size

    def contents(self, index: int) -> bytes:
        return Path(self.paths[index]).read_bytes()


def from_folders(root: Path, options: Options) -> Listing[ContentReader]:
    """Class folders, or train/val/test folders of such."""
    found = class_files(contents_of(root), SUFFIXES, "image", options.class_level)
    reader = Files(tuple((root / path).as_posix() for path in found.paths))
    return Listing(str(root), reader, found.labels, found.parts, found.notes)


def from_files(files: Mapping[str | None, Path], options: Options) -> Listing[ContentReader]:
    """The images named in tables, by the part that each table is."""
    rows: dict[str, tuple[str, str | None]] = {}
    notes: list[str] = []
    for part, file in files.items():
        table = read_table(file, options.encoding)
        label = column_of(table.columns, options.label_column, LABEL_COLUMNS, "label", str(file))
        names, paths = named_images(table, file, options.column, options.image_folder)
        for name, path, label_ in zip(names, paths, class_labels(table.cells(label), str(file)), strict=True):
            known, _ = rows.setdefault(path, (label_, part))
            if known != label_:
                raise ValueError(f"{file}: {name} is listed under {known!r} and {label_!r}; each image needs one class")
        notes += table.notes
        if again := len(names) - len(set(paths)):
            notes.append(f"{file}: {again} rows name an image again, under the same label")
    source = ", ".join(map(str, files.values()))
    labels, parts = zip(*rows.values(), strict=True)
    return Listing(source, Files(tuple(rows)), labels, parts, tuple(notes))


def named_images(table: Table, file: Path, column: str | None, folder: Path | None) -> tuple[list[str], list[str]]:
    """Names of the images in a table, and their paths: relative to the folder of the table, or to ``folder``.

    Raises:
        ValueError: there is no such column, a row names no file, or none of the files is there.
    """
    chosen = column_of(table.columns, column, IMAGE_COLUMNS, "image", str(file))
    cells = table.cells(chosen)
    if blank := [line for cell, line in zip(cells, table.lines, strict=True) if not isinstance(cell, str) or not cell]:
        raise ValueError(f"{file}, line {blank[0]}: no file name in the column {chosen!r}; fill it, or remove the row")
    names = [PurePosixPath(cell.replace("\\", "/")).as_posix() for cell in cells]
    base = folder or file.parent
    paths = [str(base / name) for name in names]
    if not any(Path(path).is_file() for path in paths):
        raise ValueError(_not_there(file, names[0], base, folder))
    return names, paths


def _not_there(file: Path, name: str, base: Path, asked: Path | None) -> str:
    """Neighbouring folders are suggested, never read unasked: one of them may be the test set."""
    near = [] if asked else [str(f) for f in folders_in(base) if (f / name).is_file()]
    hint = f" (it is in {' and in '.join(near)})" if near else ", and see that names carry their suffix"
    rule = "" if asked else "; names are relative to the folder of the table"
    return (
        f"{file}: none of its images, such as {name!r}, is in {base}{rule}; pass the folder that they are relative to "
        f"with image_folder= (--image-folder){hint}"
    )
