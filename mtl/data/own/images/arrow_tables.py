"""Images in tables of ``datasets``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mtl.data.own.images.duplicates import ContentReader
from mtl.data.own.images.files import IMAGE_COLUMNS
from mtl.data.own.sources.arrow_tables import labels_and_parts, shared_column
from mtl.data.own.sources.listing import Listing, Options, column_of

if TYPE_CHECKING:
    from datasets import Dataset


def from_tables(tables: Mapping[str, Dataset], options: Options, root: Path, where: str) -> Listing[ContentReader]:
    """The images of tables by split; ``where`` is what messages call them."""
    import datasets

    def choose(table: Dataset, name: str) -> str:
        pictures = [k for k, f in table.features.items() if isinstance(f, datasets.Image)]
        return column_of(table.features, options.column, pictures or IMAGE_COLUMNS, "image", name)

    image = shared_column(tables, where, choose)
    labels, parts = labels_and_parts(tables, options, where)
    undecoded = [t.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for t in tables.values()]
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
        return Image.open(io.BytesIO(self.contents(index)))

    def likeness(self, index: int) -> int:
        return len(self.contents(index))

    def contents(self, index: int) -> bytes:
        cell = self.table[index][self.column]
        if cell is None:
            raise ValueError("the row has no image")
        return cell["bytes"] if cell["bytes"] is not None else (self.root / cell["path"]).read_bytes()
