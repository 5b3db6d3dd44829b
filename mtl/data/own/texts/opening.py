"""Opening a source of texts."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtl.data.own.sources.arrow_tables import labels_and_parts, open_tables
from mtl.data.own.sources.csv_tables import csv_rows
from mtl.data.own.sources.listing import LABEL_COLUMNS, Listing, Options, check_choices, column_of, refuse
from mtl.data.own.sources.paths import CSV, JSONL, class_files, files_in, kind_of, suffix_of, table_files
from mtl.data.own.splits import class_labels
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
    on_unreadable: Literal["skip", "raise"] = "skip",
) -> TextCollection:
    """Open labelled texts.

    ``path`` is one of:

    - a csv, tsv, jsonl or jsonl.gz file (one JSON object per line) with a column of texts and one of labels, or a
      folder with such a file (or with train, val and test files);
    - a parquet file or a folder of them, a ``save_to_disk`` folder, a hub id such as ``"owner/name"``, or an object of
      ``datasets``;
    - a folder with one sub-folder of ``.txt`` files per class, or with train/val/test folders (two of them at least) of
      such; one file is one text.

    Parts that share no class are kept as :attr:`TextCollection.parts`; parts that do are pooled, with a warning. A text
    is stripped of white space around it; one that is given twice with one label counts once, one that is given with
    several labels not at all.

    Args:
        text_column, label_column: column names, for tables whose columns do not go by a usual name.
        split: use one split of a hub, parquet or ``save_to_disk`` data set only.
        config: configuration of a hub data set.
        on_unreadable: skip blank texts and those with several labels, with a warning that counts them, or refuse.

    Raises:
        ValueError: when there is no such source, there are fewer than two classes, a class has no text, labels are
            missing, fractional or several per text, columns are ambiguous, or texts are to be skipped and
            ``on_unreadable="raise"``.
    """
    check_choices(on_unreadable=(on_unreadable, ("skip", "raise")))
    listing = _list_source(path, Options(text_column, label_column, split, config))
    texts = ["" if t is None else str(t).strip() for t in listing.examples]
    reasons, repeated = _find_unusable(texts, listing.labels)
    skipped = tuple(f"text {i}, counted from 0 ({reason})" for i, reason in reasons.items())
    listing.warn_of(skipped, "text", on_unreadable)
    items = listing.by_class(reasons.keys() | repeated, "text", "fill them or remove them")
    return TextCollection(listing.source, items, texts, parts=listing.divided(), skipped=skipped)


def read_texts(path: str | Path, text_column: str | None = None) -> list[str]:
    """Texts without labels, in their order: of a csv, tsv or jsonl, of a folder of ``.txt`` files (in the order of
    their names), or the lines of one ``.txt`` file.

    Raises:
        ValueError: when there is no text, one is blank, or the column is ambiguous.
    """
    root = Path(path).expanduser()
    found = _read_unlabelled(root, text_column)
    texts = ["" if t is None else str(t).strip() for t in found]
    if not texts:
        raise ValueError(f"{root}: no text there; expected a csv, tsv, jsonl or txt file, or a folder of .txt files")
    if blank := [i for i, text in enumerate(texts) if not text]:
        raise ValueError(f"{root}: {len(blank)} of {len(texts)} texts are blank ({blank[:5]}, counted from 0)")
    return texts


def _read_unlabelled(root: Path, column: str | None) -> list[Any]:
    if root.is_file() and suffix_of(root, (*CSV, *JSONL)):
        names, rows = table_rows(root)
        found = column_of(names, column, TEXT_COLUMNS, "text", str(root))
        return [row.get(found) for row in rows]
    if root.is_file() and root.suffix.lower() == ".txt":
        return root.read_text(encoding="utf-8-sig").splitlines()
    return [_file_text(path) for path in files_in(root, SUFFIXES)] if root.is_dir() else []


def _list_source(source: str | Path | Dataset | DatasetDict, options: Options) -> Listing[list[Any]]:
    if not isinstance(source, str | Path):
        return _from_tables(open_tables(source, None, options), options, "the data set")
    root = Path(source).expanduser()
    if not root.exists():
        return _from_tables(open_tables(source, "hub", options), options, str(source))
    kind = kind_of(root, "text", jsonl=True)
    if kind == "classes":
        columns = {"text_column": options.column, "label_column": options.label_column}
        refuse({**columns, "split": options.split, "config": options.config}, f"{root} has class folders")
        return _from_folders(root)
    if kind in ("csv", "jsonl"):
        refuse({"split": options.split, "config": options.config}, f"{root} is read as {kind}")
        return _from_files(table_files(root, CSV if kind == "csv" else JSONL), options)
    return _from_tables(open_tables(source, kind, options), options, str(source))  # type: ignore[arg-type]


def _from_folders(root: Path) -> Listing[list[Any]]:
    found = class_files(root, SUFFIXES, "text")
    texts = [_file_text(path) for _, _, path in found]
    return Listing(str(root), texts, [label for _, label, _ in found], [part for part, _, _ in found])


def _file_text(path: str) -> str:
    # A byte that is no UTF-8 spoils a character, not the text.
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


def _from_files(files: Mapping[str | None, Path], options: Options) -> Listing[list[Any]]:
    texts: list[Any] = []
    labels: list[str] = []
    parts: list[str | None] = []
    for part, file in files.items():
        names, rows = table_rows(file)
        text = column_of(names, options.column, TEXT_COLUMNS, "text", str(file))
        label = column_of(names, options.label_column, LABEL_COLUMNS, "label", str(file))
        texts += [row.get(text) for row in rows]
        labels += class_labels([row.get(label) for row in rows], str(file))
        parts += [part] * len(rows)
    return Listing(", ".join(map(str, files.values())), texts, labels, parts)


def table_rows(file: Path) -> tuple[list[str], list[Any]]:
    """Names of the columns, and the rows by name, of a csv, tsv, jsonl or jsonl.gz file."""
    return _objects(file) if suffix_of(file, JSONL) else csv_rows(file)


def _objects(file: Path) -> tuple[list[str], list[Any]]:
    """Names, and the objects of a jsonl file."""
    rows = []
    for number, line in enumerate(_content(file).split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number} is not JSON ({error}); expected one object per line") from error
        if row is not None and not isinstance(row, dict):
            raise ValueError(f"{file}, line {number} is a {type(row).__name__}; expected an object per line")
        rows += [row] if row is not None else []
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _content(file: Path) -> str:
    if file.suffix.lower() != ".gz":
        return file.read_text(encoding="utf-8-sig")
    try:
        return gzip.decompress(file.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be decompressed ({error}); compress it anew") from error


def _from_tables(tables: Mapping[str, Dataset], options: Options, where: str) -> Listing[list[Any]]:
    features = next(iter(tables.values())).features
    # (a column of strings may also hold ids or labels)
    column = column_of(features, options.column, TEXT_COLUMNS, "text", where)
    labels, parts = labels_and_parts(tables, options, where)
    return Listing(where, [t for table in tables.values() for t in table[:][column]], labels, parts)


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
