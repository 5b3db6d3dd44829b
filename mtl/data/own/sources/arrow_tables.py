"""Tables of ``datasets``: parquet, ``save_to_disk`` folders, the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl.data.own.class_labels import class_labels
from mtl.data.own.sources.listing import LABEL_COLUMNS, Options, column_of, one_line
from mtl.data.own.splits import part_named

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def open_tables(
    source: str | Path | Dataset | DatasetDict, kind: Literal["hub", "parquet", "disk"] | None, options: Options
) -> dict[str, Dataset]:
    """Tables by split; with ``options.split`` that one alone.

    Args:
        source: an object of ``datasets``, or the path or id of a source of this kind.
    """
    if not isinstance(source, str | Path):
        return _by_split(source, options.split, "the data set")
    data = _from_hub(str(source), options) if kind == "hub" else _from_disk(kind, Path(source).expanduser())
    return _by_split(data, options.split, str(source))


def shared_column(tables: Mapping[str, Dataset], where: str, choose: Callable[[Dataset, str], str]) -> str:
    """The column that is chosen in every table.

    Args:
        choose: of a table and what messages call it; see :func:`~mtl.data.own.sources.listing.column_of`.

    Raises:
        ValueError: a table lacks it, or another one is chosen there.
    """
    if not tables:
        raise ValueError(f"{where} has no splits; expected at least one")
    try:
        found = {key: choose(table, f"{where} {key}".strip()) for key, table in tables.items()}
    except ValueError as error:
        raise ValueError(f"{error}{', or leave that split out with split=' * (len(tables) > 1)}") from error
    if len(names := sorted(set(found.values()))) > 1:
        raise ValueError(f"the splits of {where} differ in their columns, {names}; name one split with split=")
    return names[0]


def labels_and_parts(tables: Mapping[str, Dataset], options: Options, where: str) -> tuple[list[str], list[str | None]]:
    """The class of every row of all tables, and the part that it comes in."""
    import datasets

    def classes(table: Dataset) -> list[str]:
        return [k for k, f in table.features.items() if isinstance(f, datasets.ClassLabel)]

    def choose(table: Dataset, name: str) -> str:
        return column_of(table.features, options.label_column, classes(table) or LABEL_COLUMNS, "label", name)

    label = shared_column(tables, where, choose)
    labels: list[str] = []
    for key, table in tables.items():
        names = table.features[label].names if label in classes(table) else None
        labels += class_labels(table.select_columns([label])[:][label], f"{where} {key}".strip(), names)
    return labels, [part_named(key) for key, table in tables.items() for _ in range(len(table))]


def _from_disk(kind: Literal["hub", "parquet", "disk"] | None, root: Path) -> Dataset | DatasetDict:
    """Parquet files, or a ``save_to_disk`` folder."""
    import datasets

    where = {"data_files": str(root)} if root.is_file() else {"data_dir": str(root)}
    try:
        if kind == "disk":
            return datasets.load_from_disk(str(root))
        return datasets.load_dataset("parquet", **where)  # type: ignore[return-value]
    except Exception as error:  # of datasets and pyarrow, several lines each
        what = "a data set that save_to_disk wrote" if kind == "disk" else "parquet"
        raise ValueError(
            f"{root} cannot be read as {what} ({one_line(_cause(error))}); write it again, or pass another format"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What ``datasets`` wraps into an error of its own."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _from_hub(name: str, options: Options) -> Dataset | DatasetDict:
    """A data set of the hub, or of its cache."""
    import datasets

    try:
        return datasets.load_dataset(name, options.config)  # type: ignore[return-value]
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name!r} is no file or folder here, and loading it as a hub data set failed "
            f"({type(error).__name__}: {one_line(error)}); check the path, or the id and the network"
        ) from error


def _by_split(data: Dataset | DatasetDict, split: str | None, where: str) -> dict[str, Dataset]:
    tables = dict(data) if isinstance(data, dict) else {"": data}
    if split is not None and split not in tables:
        raise ValueError(f"{where} has no split {split!r}; it has {list(tables)}")
    return {k: v for k, v in tables.items() if split in (None, k)}  # type: ignore[misc]
