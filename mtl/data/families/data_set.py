"""One data set with several label columns: several questions about the same examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mtl.data.own.class_labels import class_labels
from mtl.data.own.collection import AbstractCollection

CLASS = "class"  # the column that class folders are
BLANK = frozenset({"", "na", "n/a", "nan"})


@dataclass(frozen=True, eq=False)
class DataSet:
    """Examples with label columns.

    Args:
        name: for the names of its families.
        examples: reads the examples by position; its classes do not count.
        keys: what an example is known by, such as its file name: the draw of its part depends on it.
        columns: unchecked labels by position, None or blank where there is none.
        usual: the column that is asked about when none is named.
        given: parts of the usual column's classes, where the data came divided by class.
        notes: what was left out when it was opened, and why.
        column_notes: the same about the labels of one column.
    """

    name: str
    examples: AbstractCollection
    keys: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    usual: str | None
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    column_notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> Mapping[int, str]:
        """The group of each example, by position; empty without groups."""
        return self.examples.groups

    def grouped_by(self, spec: str) -> DataSet | None:
        """With groups from a column, or from a regular expression that is searched in the file names.

        None when there is no such column and the expression fits no name. An example without a group is one of its own.
        """
        column = self.columns.get(spec)
        values = [None if is_blank(v) else str(v) for v in column] if column else [_match(spec, k) for k in self.keys]
        if not any(values):
            return None
        groups = {i: value or f"{spec} of example {i}" for i, value in enumerate(values)}
        return replace(self, examples=replace(self.examples, groups=groups))


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of question: the examples of a data set under one of its label columns.

    Args:
        data_set: the examples.
        column: the label column.
        labels: the class of each example, by position; None where it has none.
    """

    data_set: DataSet
    column: str
    labels: Sequence[str | None]

    @staticmethod
    def of(data_set: DataSet, column: str) -> Family:
        """The family of a column.

        Raises:
            ValueError: its labels are lists or fractions.
        """
        where = f"{data_set.examples.source}, column {column!r}"
        return Family(data_set, column, _clean(data_set.columns[column], where))

    @property
    def name(self) -> str:
        """Such as ``"fashion.baseColour"``."""
        return f"{self.data_set.name}.{self.column}"

    @cached_property
    def items(self) -> dict[str, tuple[int, ...]]:
        """Positions of the examples of each class."""
        found: dict[str, list[int]] = {}
        for position, label in enumerate(self.labels):
            if label is not None:
                found.setdefault(label, []).append(position)
        return {label: tuple(found[label]) for label in sorted(found)}

    def __repr__(self) -> str:
        return f"Family({self.name!r}, {sum(map(len, self.items.values()))} examples, {len(self.items)} classes)"


def is_blank(value: object) -> bool:
    """Whether a cell of a table says nothing: None, blank, NA or NaN."""
    return value is None or str(value).strip().lower() in BLANK


def _clean(values: Sequence[object], where: str) -> list[str | None]:
    kept = [i for i, value in enumerate(values) if not is_blank(value)]
    labels: list[str | None] = [None] * len(values)
    for i, label in zip(kept, class_labels([values[i] for i in kept], where), strict=True):
        labels[i] = label
    return labels


def _match(pattern: str, key: str) -> str | None:
    try:
        found = re.search(pattern, key)
    except re.error as error:
        raise ValueError(
            f"group_column={pattern!r} is no column and no regular expression ({error}); name a column, or a pattern "
            r"that is searched in file names, such as track\d+"
        ) from error
    return found.group() if found else None
