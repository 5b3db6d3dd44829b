"""People's own images: folders, csv tables, parquet and Hugging Face data sets, all through :func:`open_images`.

Whatever can be wrong with the data is said when it is opened, not in the middle of a night of training.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from mtl.data.splits import class_labels, disjoint_parts, part_named

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Mode = Literal["RGB", "L"]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

_IMAGE_COLUMNS = ("image", "img", "filename", "file_name", "file", "path", "image_path", "filepath")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")


class Reader(Protocol):
    """Encoded images by position. Picklable, so that loader workers can hold one."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def open(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class ImageCollection:
    """Images by class, decoded when asked for.

    Args:
        source: where they came from, for messages.
        items: positions of the images of each class, at least one each; class names are sorted.
        reader: encoded images by position.
        mode: ``"RGB"``, or ``"L"`` for grey.
        parts: class names of train, val and test where the source came divided *by class*; otherwise empty. For
            ``given=`` of :func:`~mtl.data.splits.split_classes`.
        unreadable: names and reasons of the images that were skipped.
    """

    source: str
    items: Mapping[str, tuple[int, ...]]
    reader: Reader
    mode: Mode
    parts: Mapping[str, tuple[str, ...]]
    unreadable: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.items)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def image(self, index: int) -> Image.Image:
        """Decode the image at a position: upright, 8 bits, in :attr:`mode`.

        Raises:
            ValueError: naming an image that cannot be decoded.
        """
        try:
            with self.reader.open(index) as image:
                return _converted(image, self.mode)
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, zlib.error, ...
            raise ValueError(
                f"{self.reader.name(index)} cannot be decoded ({error}); remove it, "
                'or open the images with verify="decode", which finds such images up front'
            ) from error


def open_images(
    path: str | Path | Dataset | DatasetDict,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_folder: str | Path | None = None,
    split: str | None = None,
    config: str | None = None,
    mode: Mode = "RGB",
    verify: Literal["header", "decode", "off"] = "header",
    on_unreadable: Literal["skip", "raise"] = "skip",
) -> ImageCollection:
    """Open labelled images.

    What ``path`` may be:

    - a folder with one sub-folder per class, or with train/val/test folders (two of them at least) of such;
    - a csv or tsv file with a column of file names and one of labels, or a folder with such a file (or with train.csv,
      val.csv, test.csv) and fewer than two sub-folders;
    - a parquet file or a folder of them, a ``save_to_disk`` folder, a hub id such as ``"owner/name"``, or an object of
      ``datasets``.

    Parts that share no class are kept as :attr:`ImageCollection.parts`; parts that do are pooled, with a warning.

    Args:
        image_column, label_column: column names, for tables whose columns do not go by a usual name.
        image_folder: what the file names of a csv are relative to; found by itself when that is the folder of the csv
            or a folder in it.
        split: use one split of a hub, parquet or ``save_to_disk`` data set only.
        config: configuration of a hub data set.
        mode: ``"RGB"``, or ``"L"`` for grey.
        verify: ``"header"`` opens every image once, in parallel, and checks what is cheap to check (checksums of png,
            but not a truncated jpeg); ``"decode"`` decodes every image; ``"off"`` trusts them.
        on_unreadable: skip unreadable images with a warning that counts them, or refuse.

    Raises:
        ValueError: when there is no such source, there are fewer than two classes, a class has no readable image,
            labels are missing, fractional or several per image, columns cannot be told, or images are unreadable
            and ``on_unreadable="raise"``.
    """
    for name, value, known in (
        ("mode", mode, ("RGB", "L")),
        ("verify", verify, ("header", "decode", "off")),
        ("on_unreadable", on_unreadable, ("skip", "raise")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {known}")
    folder = None if image_folder is None else Path(image_folder).expanduser()
    listing = _listed(path, _Options(image_column, label_column, folder, split, config))
    return _collection(listing, mode, verify, on_unreadable)


@dataclass(frozen=True)
class _Options:
    image_column: str | None
    label_column: str | None
    image_folder: Path | None
    split: str | None
    config: str | None


def _listed(source: str | Path | Dataset | DatasetDict, options: _Options) -> _Listing:
    if not isinstance(source, str | Path):
        return _from_tables(_by_split(source, options.split, "the data set"), options, Path(), "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        tables = _by_split(_from_hub(str(source), options), options.split, str(source))
        return _from_tables(tables, options, Path(), str(source))
    kind = _kind(root)
    if kind == "classes":
        _refuse(vars(options), f"{root} has class folders")
        return _from_folders(root)
    if kind == "csv":
        _refuse({"split": options.split, "config": options.config}, f"{root} is read as csv")
        return _from_csv(_csv_files(root), options)
    return _from_tables(_by_split(_loaded(kind, root), options.split, str(source)), options, root, str(source))


def _refuse(options: Mapping[str, object], because: str) -> None:
    if given := [f"{name}={value!r}" for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{because}, where {', '.join(given)} has no meaning; leave it out, or pass the path of a table"
        )


@dataclass(frozen=True)
class _Files:
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


@dataclass(frozen=True)
class _Rows:
    """Undecoded images of a table: ``{"bytes", "path"}`` in one column; paths are relative to ``root``."""

    table: Dataset
    column: str
    root: Path

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"row {index} of column {self.column!r}"

    def open(self, index: int) -> Image.Image:
        cell = self.table[index][self.column]
        if cell is None:
            raise ValueError("the row has no image")
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else self.root / cell["path"])


@dataclass(frozen=True)
class _Listing:
    """What a source holds, unchecked: image ``i`` has class ``labels[i]`` and is in ``parts[i]``, or in no part."""

    source: str
    reader: Reader
    labels: Sequence[str]
    parts: Sequence[str | None]


def _kind(root: Path) -> Literal["classes", "csv", "parquet", "disk"]:
    """What lies at an existing path, from names alone."""
    if root.is_file():
        if root.suffix.lower() in (".csv", ".tsv"):
            return "csv"
        if root.suffix.lower() == ".parquet":
            return "parquet"
        raise ValueError(
            f"{root} is a {root.suffix or 'nameless'} file; expected a folder, .csv, .tsv or .parquet (unpack archives)"
        )
    if not any(root.iterdir()):
        raise ValueError(f"{root} is empty; expected one sub-folder of images per class")
    if any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        return "disk"
    subfolders = _subfolders(root)
    if len(subfolders) < 2 and _tables_in(root):
        return "csv"
    if any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return "parquet"
    if not subfolders:
        raise ValueError(
            f"{root} has no sub-folders; expected one sub-folder of images per class, or a csv of file names and labels"
        )
    return "classes"


def _from_folders(root: Path) -> _Listing:
    subfolders = _subfolders(root)
    groups: list[tuple[str | None, Path]] = [(None, folder) for folder in subfolders]
    if len(subfolders) > 1 and all(part_named(f.name) for f in subfolders):
        groups = [(part_named(f.name), folder) for f in subfolders for folder in _subfolders(f)]
        if not groups:
            raise ValueError(
                f"{root} has {[f.name for f in subfolders]} without class folders in them; "
                "if a csv has the labels, pass the path of the csv"
            )
    elif len(subfolders) == 1:
        inner = f"; or pass {subfolders[0]} if the classes are in there" if _subfolders(subfolders[0]) else ""
        raise ValueError(
            f"{root} has one sub-folder, {subfolders[0].name!r}; expected one per class, two at least{inner}"
        )
    found = [(part, folder.name, path) for part, folder in groups for path in _images_in(folder)]
    held = {label for _, label, _ in found}
    if empty := sorted({folder.name for _, folder in groups} - held):
        raise ValueError(
            f"class folders without images in {root}: {empty}; "
            f"remove them, or convert their files to one of {sorted(SUFFIXES)}"
        )
    reader = _Files(tuple(path for _, _, path in found))
    return _Listing(str(root), reader, [label for _, label, _ in found], [part for part, _, _ in found])


def _from_csv(files: Mapping[str | None, Path], options: _Options) -> _Listing:
    rows: dict[str, tuple[str, str | None]] = {}
    for part, file in files.items():
        names, labels = _read_csv(file, options)
        base = options.image_folder or _image_folder(file, names)
        for name, label in zip(names, class_labels(labels, str(file)), strict=True):
            known, _ = rows.setdefault(str(base / name), (label, part))
            if known != label:
                raise ValueError(f"{file}: {name} is listed under {known!r} and {label!r}; each image needs one class")
    source = ", ".join(map(str, files.values()))
    labels, parts = zip(*rows.values(), strict=True) if rows else ((), ())
    return _Listing(source, _Files(tuple(rows)), labels, parts)


def _csv_files(root: Path) -> dict[str | None, Path]:
    files = [root] if root.is_file() else _tables_in(root)
    if len(files) == 1:
        return {None: files[0]}
    parts = {part_named(f.stem): f for f in files}
    if None in parts or len(parts) < len(files):
        raise ValueError(f"{root} has several tables, {[f.name for f in files]}; pass the path of the one to use")
    return {**parts}


def _read_csv(file: Path, options: _Options) -> tuple[list[str], list[str | None]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:  # -sig: spreadsheets write a byte order mark
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
        names = list(reader.fieldnames or ())
        image = _column(names, options.image_column, _IMAGE_COLUMNS, "image", str(file))
        label = _column(names, options.label_column, _LABEL_COLUMNS, "label", str(file))
        rows = list(reader)
    return [row[image] or "" for row in rows], [row[label] for row in rows]


def _image_folder(file: Path, names: Sequence[str]) -> Path:
    """The folder that holds the first file named in a csv: that of the csv, or one in it."""
    candidates = [file.parent, *_subfolders(file.parent)]
    for folder in candidates:
        if names and (folder / names[0]).is_file():
            return folder
    raise ValueError(
        f"{file} names {names[0] if names else None!r}, which is not in {file.parent} nor a folder in it; "
        "pass image_folder=, and see that names carry their suffix"
    )


def _loaded(kind: Literal["parquet", "disk"], root: Path) -> Dataset | DatasetDict:
    import datasets

    if kind == "disk":
        return datasets.load_from_disk(str(root))
    where = {"data_files": str(root)} if root.is_file() else {"data_dir": str(root)}
    return datasets.load_dataset("parquet", **where)  # type: ignore[return-value]


def _from_hub(name: str, options: _Options) -> Dataset | DatasetDict:
    import datasets

    try:
        return datasets.load_dataset(name, options.config)  # type: ignore[return-value]
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name!r} is no file or folder here, and loading it as a hub data set failed "
            f"({type(error).__name__}: {error}); check the path, or the id and the network"
        ) from error


def _by_split(data: Dataset | DatasetDict, split: str | None, where: str) -> dict[str, Dataset]:
    tables = dict(data) if isinstance(data, dict) else {"": data}
    if split is not None and split not in tables:
        raise ValueError(f"{where} has no split {split!r}; it has {list(tables)}")
    return {k: v for k, v in tables.items() if split in (None, k)}  # type: ignore[misc]


def _from_tables(tables: Mapping[str, Dataset], options: _Options, root: Path, where: str) -> _Listing:
    import datasets

    features = next(iter(tables.values())).features
    pictures = [k for k, f in features.items() if isinstance(f, datasets.Image)]
    classes = [k for k, f in features.items() if isinstance(f, datasets.ClassLabel)]
    image = _column(features, options.image_column, pictures or _IMAGE_COLUMNS, "image", where)
    label = _column(features, options.label_column, classes or _LABEL_COLUMNS, "label", where)
    labels: list[str] = []
    for key, table in tables.items():
        names = table.features[label].names if label in classes else None
        labels += class_labels(table.select_columns([label])[:][label], f"{where} {key}".strip(), names)
    undecoded = [t.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for t in tables.values()]
    parts = [part_named(key) for key, table in tables.items() for _ in range(len(table))]
    folder = root.parent if root.is_file() else root
    return _Listing(where, _Rows(datasets.concatenate_datasets(undecoded), image, folder), labels, parts)


def _collection(listing: _Listing, mode: Mode, verify: str, on_unreadable: str) -> ImageCollection:
    bad = {} if verify == "off" else _unreadable(listing.reader, decode=verify == "decode")
    reasons = tuple(f"{listing.reader.name(i)} ({reason})" for i, reason in bad.items())
    if reasons:
        told = f"{len(reasons)} of {len(listing.labels)} images of {listing.source} cannot be read: {_some(reasons)}"
        if on_unreadable == "raise":
            raise ValueError(f'{told}; remove them, or skip them with on_unreadable="skip"')
        warnings.warn(f"{told}; they are skipped", stacklevel=3)
    items: dict[str, list[int]] = {label: [] for label in sorted(set(listing.labels))}
    for i, label in enumerate(listing.labels):
        if i not in bad:
            items[label].append(i)
    if len(items) < 2:
        raise ValueError(
            f"{listing.source} has {len(items)} classes, {list(items)}; few-shot episodes need two at least"
        )
    if empty := [label for label, indices in items.items() if not indices]:
        raise ValueError(f"no image of these classes of {listing.source} can be read: {empty}; repair or remove them")
    parts = disjoint_parts(listing.parts, listing.labels, listing.source)
    frozen = {label: tuple(indices) for label, indices in items.items()}
    return ImageCollection(listing.source, frozen, listing.reader, mode, parts, reasons)


def _unreadable(reader: Reader, decode: bool) -> dict[int, str]:
    """Reasons by position. Threads, because Pillow releases the lock while it reads and decodes."""
    count = len(reader)
    found: dict[int, str] = {}
    # by the chunk, because a million futures take a gigabyte
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    with ThreadPoolExecutor() as pool, tqdm(total=count, desc="checking images", disable=count <= 500) as bar:
        for chunk, reasons in zip(chunks, pool.map(partial(_reasons, reader, decode), chunks), strict=True):
            found |= {i: reason for i, reason in zip(chunk, reasons, strict=True) if reason}
            bar.update(len(chunk))
    return found


def _reasons(reader: Reader, decode: bool, indices: Iterable[int]) -> list[str]:
    return [_reason(reader, decode, i) for i in indices]


def _reason(reader: Reader, decode: bool, index: int) -> str:
    """Why an image cannot be read; empty when it can."""
    try:
        with reader.open(index) as image:
            _checked_mode(image)
            if decode:
                image.load()
            else:
                image.verify()
    except Exception as error:  # see ImageCollection.image
        return str(error) or type(error).__name__
    return ""


def _checked_mode(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    return image


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    """Upright, 8 bits, opaque. ``convert`` alone clips 16-bit pixels to white and uncovers transparent ones."""
    image = ImageOps.exif_transpose(_checked_mode(image))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _tables_in(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and not p.name.startswith("."))


def _images_in(folder: Path) -> list[str]:
    """Images at any depth, sorted by path; hidden files, such as macOS's ``._x.jpg``, are not images."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p.as_posix() for p in paths if not any(x.startswith(".") for x in p.relative_to(folder).parts))


def _column(names: Iterable[str], asked: str | None, usual: Sequence[str], role: str, where: str) -> str:
    """The column that is asked for, or else the only one that goes by a usual name."""
    names = list(names)
    found = [k for k in names if (k == asked if asked is not None else k.lower() in usual or k in usual)]
    if len(found) == 1:
        return found[0]
    what = f"no column {asked!r}" if asked is not None else f"{len(found) or 'no'} columns that may be the {role}"
    raise ValueError(f"{where} has {what} among {names}; name one with {role}_column=")


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
