"""Opening several data sets with several label columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mtl.data.families.data_set import DataSet, Family
from mtl.data.families.image_sets import open_image_set
from mtl.data.families.text_sets import open_text_set
from mtl.data.own.images.opening import Verify
from mtl.data.own.sources.decoding import check_encoding
from mtl.data.own.sources.listing import Options, check_choices
from mtl.items import Mode

Sources = str | Path | Sequence[str | Path] | Mapping[str, str | Path]


def open_families(
    sources: Sources,
    columns: Sequence[str] = (),
    *,
    kind: Literal["images", "texts"] = "images",
    groups: Sequence[str] = (),
    text_column: str | None = None,
    image_column: str | None = None,
    image_folder: str | Path | None = None,
    encoding: str | None = None,
    class_level: int | None = None,
    mode: Mode = "RGB",
    verify: Verify = "header",
) -> list[Family]:
    """Open data sets whose examples have several labels: one family of tasks per data set and label column.

    A source is a folder of class folders, a zip archive of them or a folder with one; an ``attributes.csv`` or
    ``metadata.csv`` beside the class folders or the archive has further labels: a column ``file`` (or ``file_name``)
    with paths such as ``ash/0001.jpg``, and others with a label of that photograph each. The class folders themselves
    are the column ``class``. Or a source is a table of file names or texts with several label columns (csv, tsv, jsonl,
    json, also packed), or anything else that :func:`~mtl.open_images` and :func:`~mtl.open_texts` take.

    All families of a data set share its examples: each is read and preprocessed once. Blank labels and ``NA`` are left
    out of that column's family. An example that is there several times counts once, with the labels of all; where they
    disagree it has none.

    Args:
        sources: paths, named after their folder or file; or paths by name.
        columns: label columns of every data set that has them, or of one, such as ``"fashion:baseColour"``. A data set
            that has none of them is asked by its class folders, or the only or usual label column.
        kind: what the examples are.
        groups: for each data set a column, such as the patient or the author, or a regular expression that is searched
            in the path within the data set, such as ``"signs:.*track\\d+"``. Support and query never share a group.
        text_column, image_column: column of texts or file names, where it goes by no usual name.
        image_folder: what the file names of tables are relative to; by default the folder of the table.
        encoding, class_level: see :func:`~mtl.open_images`.
        mode, verify: see :func:`~mtl.open_images`. Unreadable images are left out and counted.

    Raises:
        ValueError: no such source, column or group; names repeat; labels are lists or fractions; a column has fewer
            than two classes.
    """
    check_choices(
        kind=(kind, ("images", "texts")), mode=(mode, ("RGB", "L")), verify=(verify, ("header", "decode", "off"))
    )
    column = image_column if kind == "images" else text_column
    folder = None if image_folder is None else Path(image_folder).expanduser()
    options = Options(column, None, None, None, folder, check_encoding(encoding), class_level)
    named = _named(sources)
    asked = {name: _asked_of(name, columns) for name in named}
    data_sets = [
        open_image_set(name, path, asked[name], options, mode, verify)
        if kind == "images"
        else open_text_set(name, path, asked[name], options)
        for name, path in named.items()
    ]
    _check_columns(columns, data_sets)
    grouped = _with_groups(data_sets, groups)
    families = [Family.of(d, column) for d in grouped for column in _chosen(d, asked[d.name])]
    if few := [f for f in families if len(f.items) < 2]:
        raise ValueError(f"{few[0].name} has {len(few[0].items)} classes; a label column needs at least two")
    return families


def _named(sources: Sources) -> dict[str, str | Path]:
    if isinstance(sources, Mapping):
        named = list(sources.items())
    else:
        paths = [sources] if isinstance(sources, str | Path) else sources
        named = [(_name(Path(path)), path) for path in paths]
    if not named:
        raise ValueError("no data set is given; expected at least one path")
    if repeated := [name for name, count in Counter(name for name, _ in named).items() if count > 1]:
        raise ValueError(f"two data sets are called {repeated[0]!r}; rename a folder, or give paths by name")
    return dict(named)


def _name(path: Path) -> str:
    """``photos/fashion/`` and ``photos/fashion/images.zip`` are called fashion, ``texts/hwu64.jsonl.gz`` hwu64."""
    path = path.expanduser().absolute()
    if path.is_dir():
        return path.name
    stem = path.name.split(".")[0]
    return path.parent.name if path.suffix and stem in ("images", "attributes", "metadata") else stem


def _asked_of(name: str, columns: Sequence[str]) -> list[str]:
    """The columns that are asked of a data set, whether it has them or not."""
    pairs = [c.split(":", 1) if ":" in c else ("", c) for c in columns]
    return list(dict.fromkeys(column for data_set, column in pairs if data_set in ("", name)))


def _chosen(data_set: DataSet, asked: Sequence[str]) -> list[str]:
    if chosen := [c for c in asked if c in data_set.columns]:
        return chosen
    if data_set.usual is None:
        raise ValueError(
            f"{data_set.name} has the columns {list(data_set.columns)}; choose labels with label_columns, such as "
            f"{data_set.name}:{next(iter(data_set.columns), 'label')}"
        )
    return [data_set.usual]


def _check_columns(columns: Sequence[str], data_sets: Sequence[DataSet]) -> None:
    for spec in columns:
        name, column = spec.split(":", 1) if ":" in spec else ("", spec)
        asked = [d for d in data_sets if name in ("", d.name)]
        if not any(column in d.columns for d in asked):
            have = {d.name: list(d.columns) for d in asked or data_sets}
            raise ValueError(f"label column {spec!r} is in no data set; there are {have}")


def _with_groups(data_sets: Sequence[DataSet], specs: Sequence[str]) -> list[DataSet]:
    names = {d.name for d in data_sets}
    found = {d.name: d for d in data_sets}
    for spec in specs:
        name, rest = spec.split(":", 1) if spec.split(":", 1)[0] in names else ("", spec)
        grouped = {d.name: g for d in data_sets if name in ("", d.name) and (g := d.grouped_by(rest))}
        if not grouped:
            raise ValueError(
                f"group column {spec!r} is no column of {name or sorted(names)} and fits no file name as a regular "
                rf"expression; name a column, or a pattern such as {name or 'signs'}:.*track\d+"
            )
        if twice := [n for n in grouped if found[n].groups]:
            raise ValueError(f"{twice[0]} has groups twice, the second time by {spec!r}; name one per data set")
        found |= grouped
    return list(found.values())
