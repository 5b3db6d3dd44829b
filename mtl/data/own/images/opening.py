"""Opening a source of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl.data.own.images.arrow_tables import from_tables
from mtl.data.own.images.checking import check_collection
from mtl.data.own.images.collection import ImageCollection, Reader
from mtl.data.own.images.files import from_csv, from_folders
from mtl.data.own.sources.arrow_tables import open_tables
from mtl.data.own.sources.listing import Listing, Options, check_choices, refuse
from mtl.data.own.sources.paths import CSV, kind_of, table_files
from mtl.items import Mode

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

    ``path`` is one of:

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
            labels are missing, fractional or several per image, columns are ambiguous, or images are unreadable
            and ``on_unreadable="raise"``.
    """
    check_choices(
        mode=(mode, ("RGB", "L")),
        verify=(verify, ("header", "decode", "off")),
        on_unreadable=(on_unreadable, ("skip", "raise")),
    )
    folder = None if image_folder is None else Path(image_folder).expanduser()
    listing = _list_source(path, Options(image_column, label_column, split, config, folder))
    return check_collection(listing, mode, verify, on_unreadable)


def _list_source(source: str | Path | Dataset | DatasetDict, options: Options) -> Listing[Reader]:
    if not isinstance(source, str | Path):
        return from_tables(open_tables(source, None, options), options, Path(), "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        return from_tables(open_tables(source, "hub", options), options, Path(), str(source))
    kind = kind_of(root, "image")
    if kind == "classes":
        refuse(
            {
                "image_column": options.column,
                "label_column": options.label_column,
                "image_folder": options.image_folder,
                "split": options.split,
                "config": options.config,
            },
            f"{root} has class folders",
        )
        return from_folders(root)
    if kind == "csv":
        refuse({"split": options.split, "config": options.config}, f"{root} is read as csv")
        return from_csv(table_files(root, CSV), options)
    assert kind != "jsonl"
    return from_tables(open_tables(source, kind, options), options, root, str(source))
