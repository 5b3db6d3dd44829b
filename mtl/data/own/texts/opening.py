"""Opening a source of texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtl.data.own.class_labels import class_labels
from mtl.data.own.sources.arrow_tables import labels_and_parts, open_tables, shared_column
from mtl.data.own.sources.class_folders import class_files, contents_of
from mtl.data.own.sources.decoding import check_encoding, read_text
from mtl.data.own.sources.listing import LABEL_COLUMNS, Listing, Options, check_choices, column_of, refuse
from mtl.data.own.sources.paths import files_in, kind_of, suffix_of, table_files
from mtl.data.own.sources.tables import TABLES, read_table
from mtl.data.own.texts.collection import TextCollection

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TEXT_COLUMNS = ("text", "texts", "sentence", "content", "document", "review", "question", "utterance")
SUFFIXES = frozenset({".txt"})


def open_texts(
    path: str | Path | Dataset | DatasetDict,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    encoding: str | None = None,
    class_level: int | None = None,
    min_per_class: int = 1,
    on_unreadable: Literal["skip", "raise"] = "skip",
) -> TextCollection:
    """Open labelled texts.

    ``path`` is one of:

    - a csv, tsv, jsonl (one JSON object per line) or json file (a list of objects) with a column of texts and one of
      labels, also as ``.gz`` or alone in a ``.zip``; or a folder with such a file, or with train, val and test files;
    - a parquet file or a folder of them, a ``save_to_disk`` folder, a hub id such as ``"owner/name"``, or an object of
      ``datasets``;
    - a folder with one sub-folder of ``.txt`` files per class, or with train/val/test folders (two of them at least) of
      such; one file is one text.

    Parts that share no class are kept as :attr:`TextCollection.parts`; parts that do are pooled, with a warning. A text
    is stripped of white space around it; one that is given twice with one label counts once, one that is given with
    several labels not at all. :attr:`TextCollection.notes` has a line for all that is left out.

    Args:
        text_column, label_column: column names, for tables whose columns do not go by a usual name.
        split: use one split of a hub, parquet or ``save_to_disk`` data set only.
        config: configuration of a hub data set.
        encoding: of files that are not UTF-8 and have no byte order mark, such as ``"latin-1"``.
        class_level: 1 when the outer folders are the classes, 2 when the folders in them are.
        min_per_class: classes with fewer texts are left out.
        on_unreadable: skip blank texts and those with several labels, with a warning that counts them, or refuse.

    Raises:
        ValueError: when there is no such source, a table is damaged or its rows are of unequal length, bytes are not
            of the encoding, fewer than two classes are left, labels are missing, fractional or several per text,
            columns are ambiguous, or texts are to be skipped and ``on_unreadable="raise"``.
        OSError: when a file cannot be read.
    """
    check_choices(on_unreadable=(on_unreadable, ("skip", "raise")))
    options = Options(text_column, label_column, split, config, None, check_encoding(encoding), class_level)
    listing = _list_source(path, options)
    texts = as_texts(listing.examples, listing.source)
    reasons, repeated = _find_unusable(texts, listing.labels)
    skipped = tuple(f"text {i}, counted from 0 ({reason})" for i, reason in reasons.items())
    warned = listing.warn_of(skipped, "text", on_unreadable)
    again = (f"{len(repeated)} texts are given again under the same label, and count once",) if repeated else ()
    items, small = listing.by_class(reasons.keys() | repeated, "text", min_per_class)
    notes = (*listing.notes, *warned, *again, *small)
    return TextCollection(listing.source, items, texts, parts=listing.divided(items), skipped=skipped, notes=notes)


def as_texts(cells: Sequence[Any], where: str) -> list[str]:
    """Cells of a table as texts, without white space around them; blank where there is none.

    Args:
        where: the table, for messages.

    Raises:
        ValueError: a cell is neither a string nor a number.
    """
    for i, cell in enumerate(cells):
        if cell is not None and not isinstance(cell, str | int | float):
            kind = type(cell).__name__
            raise ValueError(f"{where}: text {i}, counted from 0, is a {kind}; expected strings, choose text_column=")
    # cell != cell: NaN, which a blank becomes in a column of numbers
    return ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]


def read_texts(path: str | Path, text_column: str | None = None, encoding: str | None = None) -> list[str]:
    """Texts without labels, in their order: of a csv, tsv, jsonl or json, of a folder of ``.txt`` files (in the order
    of their names), or the lines of one ``.txt`` file.

    Args:
        text_column, encoding: see :func:`open_texts`.

    Raises:
        ValueError: when there is no text, one is blank, the column is ambiguous, or the file is damaged.
        OSError: when it cannot be read.
    """
    root = Path(path).expanduser()
    texts = as_texts(_read_unlabelled(root, text_column, check_encoding(encoding)), str(root))
    if not texts:
        raise ValueError(f"{root}: no text there; expected {', '.join(TABLES)}, a txt file, or a folder of .txt files")
    if blank := [i for i, text in enumerate(texts) if not text]:
        raise ValueError(f"{root}: {len(blank)} of {len(texts)} texts are blank ({blank[:5]}, counted from 0)")
    return texts


def _read_unlabelled(root: Path, column: str | None, encoding: str | None) -> list[Any]:
    if root.is_file() and suffix_of(root, (*TABLES, ".zip")):
        table = read_table(root, encoding)
        return table.cells(column_of(table.columns, column, TEXT_COLUMNS, "text", str(root)))
    if root.is_file() and root.suffix.lower() == ".txt":
        return re.split(r"\r\n|\n|\r", read_text(root, encoding).removesuffix("\n").removesuffix("\r"))
    return [read_text(Path(path), encoding) for path in files_in(root, SUFFIXES)] if root.is_dir() else []


def _list_source(source: str | Path | Dataset | DatasetDict, options: Options) -> Listing[list[Any]]:
    if not isinstance(source, str | Path):
        return _from_tables(source, None, options, "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        return _from_tables(source, "hub", options, str(source))
    kind = kind_of(root, "text")
    if kind == "classes":
        columns = {"text_column": options.column, "label_column": options.label_column}
        refuse({**columns, "split": options.split, "config": options.config}, f"{root} has class folders")
        return _from_folders(root, options)
    if kind in ("table", "zip"):
        inapplicable = {"split": options.split, "config": options.config, "class_level": options.class_level}
        refuse(inapplicable, f"{root} is read as a table")
        return _from_files(table_files(root), options)
    return _from_tables(source, kind, options, str(source))


def _from_folders(root: Path, options: Options) -> Listing[list[Any]]:
    found = class_files(contents_of(root), SUFFIXES, "text", options.class_level)
    texts = [read_text(root / path, options.encoding) for path in found.paths]
    return Listing(str(root), texts, found.labels, found.parts, found.notes)


def _from_files(files: Mapping[str | None, Path], options: Options) -> Listing[list[Any]]:
    texts: list[Any] = []
    labels: list[str] = []
    parts: list[str | None] = []
    notes: list[str] = []
    for part, file in files.items():
        table = read_table(file, options.encoding)
        text = column_of(table.columns, options.column, TEXT_COLUMNS, "text", str(file))
        label = column_of(table.columns, options.label_column, LABEL_COLUMNS, "label", str(file))
        texts += as_texts(table.cells(text), str(file))
        labels += class_labels(table.cells(label), str(file))
        parts += [part] * len(table.rows)
        notes += table.notes
    return Listing(", ".join(map(str, files.values())), texts, labels, parts, tuple(notes))


def _from_tables(
    source: str | Path | Dataset | DatasetDict,
    kind: Literal["hub", "parquet", "disk"] | None,
    options: Options,
    where: str,
) -> Listing[list[Any]]:
    refuse({"encoding": options.encoding, "class_level": options.class_level}, f"{where} is read by datasets")
    tables = open_tables(source, kind, options)
    # (a column of strings may also hold ids or labels)
    choose = lambda table, name: column_of(table.features, options.column, TEXT_COLUMNS, "text", name)  # noqa: E731
    column = shared_column(tables, where, choose)
    labels, parts = labels_and_parts(tables, options, where)
    return Listing(
        where, [t for table in tables.values() for t in table.select_columns([column])[:][column]], labels, parts
    )


def _find_unusable(texts: Sequence[str], labels: Sequence[str]) -> tuple[dict[int, str], set[int]]:
    """Reasons by position, and the positions of texts that came before: a query must not be in the support too."""
    classes: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        classes.setdefault(text, set()).add(label)
    reasons: dict[int, str] = {}
    repeated: set[int] = set()
    seen: set[str] = set()
    for i, text in enumerate(texts):
        if not text:
            reasons[i] = "blank"
        elif len(classes[text]) > 1:
            reasons[i] = f"in {len(classes[text])} classes"
        elif text in seen:
            repeated.add(i)
        seen.add(text)
    return reasons, repeated
