"""Opening a source: what lies there, and who lists it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl.data.images.arrow_tables import by_split, from_disk, from_hub, from_tables
from mtl.data.images.checking import checked_collection
from mtl.data.images.collection import ImageCollection, Mode
from mtl.data.images.csv_tables import csv_files, from_csv, tables_in
from mtl.data.images.folders import from_folders
from mtl.data.images.listing import Listing, Options, folders_in

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


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
    listing = _listed(path, Options(image_column, label_column, folder, split, config))
    return checked_collection(listing, mode, verify, on_unreadable)


def _listed(source: str | Path | Dataset | DatasetDict, options: Options) -> Listing:
    if not isinstance(source, str | Path):
        return from_tables(by_split(source, options.split, "the data set"), options, Path(), "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        tables = by_split(from_hub(str(source), options), options.split, str(source))
        return from_tables(tables, options, Path(), str(source))
    kind = _kind(root)
    if kind == "classes":
        _refuse(vars(options), f"{root} has class folders")
        return from_folders(root)
    if kind == "csv":
        _refuse({"split": options.split, "config": options.config}, f"{root} is read as csv")
        return from_csv(csv_files(root), options)
    return from_tables(by_split(from_disk(kind, root), options.split, str(source)), options, root, str(source))


def _refuse(options: Mapping[str, object], because: str) -> None:
    if given := [f"{name}={value!r}" for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{because}, where {', '.join(given)} has no meaning; leave it out, or pass the path of a table"
        )


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
    subfolders = folders_in(root)
    if len(subfolders) < 2 and tables_in(root):
        return "csv"
    if any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")):
        return "parquet"
    if not subfolders:
        raise ValueError(
            f"{root} has no sub-folders; expected one sub-folder of images per class, or a csv of file names and labels"
        )
    return "classes"
