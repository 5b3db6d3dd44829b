"""Opening a source of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl.data.own.images.arrow_tables import from_tables
from mtl.data.own.images.checking import check_collection
from mtl.data.own.images.collection import ImageCollection
from mtl.data.own.images.duplicates import ContentReader
from mtl.data.own.images.files import from_files, from_folders
from mtl.data.own.images.zip_files import from_zip
from mtl.data.own.sources.arrow_tables import open_tables
from mtl.data.own.sources.decoding import check_encoding
from mtl.data.own.sources.listing import Listing, Options, check_choices, refuse
from mtl.data.own.sources.paths import kind_of, table_files
from mtl.items import Mode

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Verify = Literal["header", "decode", "off"]


def open_images(
    path: str | Path | Dataset | DatasetDict,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_folder: str | Path | None = None,
    split: str | None = None,
    config: str | None = None,
    encoding: str | None = None,
    class_level: int | None = None,
    min_per_class: int = 1,
    mode: Mode = "RGB",
    verify: Verify = "header",
    on_unreadable: Literal["skip", "raise"] = "skip",
) -> ImageCollection:
    """Open labelled images.

    ``path`` is one of:

    - a folder with one sub-folder per class, or with train/val/test folders (two of them at least) of such; or a zip
      archive of them;
    - a csv, tsv, jsonl or json table with a column of file names and one of labels, also as ``.gz``, or a folder with
      such a file (or with train.csv, val.csv, test.csv) and fewer than two sub-folders;
    - a parquet file or a folder of them, a ``save_to_disk`` folder, a hub id such as ``"owner/name"``, or an object of
      ``datasets``.

    Parts that share no class are kept as :attr:`ImageCollection.parts`; parts that do are pooled, with a warning.
    Images with the same bytes count once, and not at all when they are in several classes.
    :attr:`ImageCollection.notes` has a line for all that is left out.

    Args:
        image_column, label_column: column names, for tables whose columns do not go by a usual name.
        image_folder: what the file names of a table are relative to; by default the folder of the table.
        split: use one split of a hub, parquet or ``save_to_disk`` data set only.
        config: configuration of a hub data set.
        encoding: of tables that are not UTF-8 and have no byte order mark, such as ``"latin-1"``.
        class_level: 1 when the outer folders are the classes, 2 when the folders in them are.
        min_per_class: classes with fewer images are left out.
        mode: ``"RGB"``, or ``"L"`` for grey.
        verify: ``"header"`` opens every image once, in parallel, and checks what is cheap to check (checksums of png,
            but not a truncated jpeg); ``"decode"`` decodes every image; ``"off"`` trusts them, and looks for no
            duplicates.
        on_unreadable: skip unreadable images with a warning that counts them, or refuse.

    Raises:
        ValueError: when there is no such source, a table is damaged or its rows are of unequal length, fewer than two
            classes are left, labels are missing, fractional or several per image, columns are ambiguous, it is not
            clear which folders are the classes, or images cannot be used and ``on_unreadable="raise"``.
        OSError: when a file or folder cannot be read.
    """
    check_choices(
        mode=(mode, ("RGB", "L")),
        verify=(verify, ("header", "decode", "off")),
        on_unreadable=(on_unreadable, ("skip", "raise")),
    )
    folder = None if image_folder is None else Path(image_folder).expanduser()
    options = Options(image_column, label_column, split, config, folder, check_encoding(encoding), class_level)
    return check_collection(_list_source(path, options), mode, verify, on_unreadable, min_per_class)


def _list_source(source: str | Path | Dataset | DatasetDict, options: Options) -> Listing[ContentReader]:
    if not isinstance(source, str | Path):
        _refuse_files(options, "the data set")
        return from_tables(open_tables(source, None, options), options, Path(), "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        _refuse_files(options, str(source))
        return from_tables(open_tables(source, "hub", options), options, Path(), str(source))
    kind = kind_of(root, "image")
    if kind in ("classes", "zip"):
        inapplicable = {
            "image_column": options.column,
            "label_column": options.label_column,
            "image_folder": options.image_folder,
            "split": options.split,
            "config": options.config,
            "encoding": options.encoding,
        }
        refuse(inapplicable, f"{root} has class folders")
        return from_folders(root, options) if kind == "classes" else from_zip(root, options)
    if kind == "table":
        inapplicable = {"split": options.split, "config": options.config, "class_level": options.class_level}
        refuse(inapplicable, f"{root} is read as a table")
        return from_files(table_files(root), options)
    _refuse_files(options, str(source))
    return from_tables(open_tables(source, kind, options), options, root, str(source))


def _refuse_files(options: Options, where: str) -> None:
    files = {"image_folder": options.image_folder, "encoding": options.encoding, "class_level": options.class_level}
    refuse(files, f"{where} is read by datasets")
