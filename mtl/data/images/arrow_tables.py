"""Images in tables of ``datasets``: parquet, ``save_to_disk`` folders, the hub, or an object at hand."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from mtl.data.images.listing import IMAGE_COLUMNS, LABEL_COLUMNS, Listing, Options, column_of
from mtl.data.splits import class_labels, part_named

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def from_tables(tables: Mapping[str, Dataset], options: Options, root: Path, where: str) -> Listing:
    """The images of tables by split; ``where`` is what messages call them."""
    import datasets

    features = next(iter(tables.values())).features
    pictures = [k for k, f in features.items() if isinstance(f, datasets.Image)]
    classes = [k for k, f in features.items() if isinstance(f, datasets.ClassLabel)]
    image = column_of(features, options.image_column, pictures or IMAGE_COLUMNS, "image", where)
    label = column_of(features, options.label_column, classes or LABEL_COLUMNS, "label", where)
    labels: list[str] = []
    for key, table in tables.items():
        names = table.features[label].names if label in classes else None
        labels += class_labels(table.select_columns([label])[:][label], f"{where} {key}".strip(), names)
    undecoded = [t.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for t in tables.values()]
    parts = [part_named(key) for key, table in tables.items() for _ in range(len(table))]
    folder = root.parent if root.is_file() else root
    return Listing(where, _Rows(datasets.concatenate_datasets(undecoded), image, folder), labels, parts)


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


def from_disk(kind: Literal["parquet", "disk"], root: Path) -> Dataset | DatasetDict:
    """Parquet files, or what ``save_to_disk`` wrote."""
    import datasets

    if kind == "disk":
        return datasets.load_from_disk(str(root))
    where = {"data_files": str(root)} if root.is_file() else {"data_dir": str(root)}
    return datasets.load_dataset("parquet", **where)  # type: ignore[return-value]


def from_hub(name: str, options: Options) -> Dataset | DatasetDict:
    """A data set of the hub, or of its cache."""
    import datasets

    try:
        return datasets.load_dataset(name, options.config)  # type: ignore[return-value]
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name!r} is no file or folder here, and loading it as a hub data set failed "
            f"({type(error).__name__}: {error}); check the path, or the id and the network"
        ) from error


def by_split(data: Dataset | DatasetDict, split: str | None, where: str) -> dict[str, Dataset]:
    """Tables by split; with ``split`` that one alone."""
    tables = dict(data) if isinstance(data, dict) else {"": data}
    if split is not None and split not in tables:
        raise ValueError(f"{where} has no split {split!r}; it has {list(tables)}")
    return {k: v for k, v in tables.items() if split in (None, k)}  # type: ignore[misc]
