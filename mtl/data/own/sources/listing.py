"""The unchecked contents of a source, options for reading it, and choosing its columns."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mtl.data.own.splits import disjoint_parts

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
Examples = TypeVar("Examples", bound=Sized)


@dataclass(frozen=True)
class Options:
    """Options of :func:`~mtl.open_images` or :func:`~mtl.open_texts`."""

    column: str | None  # of images or texts
    label_column: str | None
    split: str | None
    config: str | None
    image_folder: Path | None = None
    encoding: str | None = None
    class_level: int | None = None


@dataclass(frozen=True)
class Listing(Generic[Examples]):
    """Unchecked contents of a source: example ``i`` has class ``labels[i]`` and is in ``parts[i]``, or in no part.

    Args:
        notes: what was left out already, one line each.
    """

    source: str
    examples: Examples
    labels: Sequence[str]
    parts: Sequence[str | None]
    notes: tuple[str, ...] = ()

    def by_class(
        self, skipped: Container[int], noun: str, min_per_class: int = 1
    ) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
        """Positions by class, of the examples that are not left out, class names sorted; and a note about classes
        that are left out, because they have fewer than ``min_per_class`` examples.

        Args:
            noun: the word for an example, for messages.

        Raises:
            ValueError: nothing is there, or fewer than two classes are left.
        """
        if not self.labels:
            raise ValueError(f"{self.source} holds no {noun} with a label; expected {noun}s of two classes at least")
        every: dict[str, list[int]] = {label: [] for label in sorted(set(self.labels))}
        for i, label in enumerate(self.labels):
            if i not in skipped:
                every[label].append(i)
        least = max(1, min_per_class)
        items = {label: tuple(places) for label, places in every.items() if len(places) >= least}
        notes = ()
        if small := [f"{label!r} ({len(places)})" for label, places in every.items() if len(places) < least]:
            notes = (f"{len(small)} classes of fewer than {least} {noun}s are left out: {some(small)}",)
        if len(items) < 2:
            left_out = f" ({notes[0]})" if notes else ""
            raise ValueError(
                f"{self.source} has {len(items)} classes, {list(items)}{left_out}; few-shot episodes need at least two"
            )
        return items, notes

    def divided(self, items: Container[str]) -> dict[str, tuple[str, ...]]:
        """See :func:`~mtl.data.own.splits.disjoint_parts`; of the classes that are kept."""
        parts = disjoint_parts(self.parts, self.labels, self.source)
        kept = {part: tuple(name for name in names if name in items) for part, names in parts.items()}
        return {part: names for part, names in kept.items() if names}

    def warn_of(self, reasons: Sequence[str], noun: str, on_unreadable: str) -> tuple[str, ...]:
        """Warn about the examples that are left out, at the call of ``open_images`` or ``open_texts``; or refuse.

        Returns:
            The same as a note.

        Raises:
            ValueError: when there are some and ``on_unreadable`` is ``"raise"``.
        """
        if not reasons:
            return ()
        message = f"{len(reasons)} of {len(self.labels)} {noun}s of {self.source} cannot be used: {some(reasons)}"
        if on_unreadable == "raise":
            raise ValueError(f'{message}; remove them, or skip them with on_unreadable="skip"')
        warnings.warn(f"{message}; they are skipped", stacklevel=4)
        return (f"{message}; they are skipped",)


def column_of(names: Iterable[str], asked: str | None, usual: Sequence[str], role: str, where: str) -> str:
    """The column that is asked for, or else the only one that goes by a usual name."""
    names = list(names)
    found = [k for k in names if (k == asked if asked is not None else k.lower() in usual or k in usual)]
    if len(found) == 1:
        return found[0]
    what = f"no column {asked!r}" if asked is not None else f"{len(found) or 'no'} columns that may be the {role}"
    raise ValueError(f"{where} has {what} among {names}; name one with {role}_column=")


def check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    """Refuse a value that is not among those known.

    Args:
        choices: value and known values by name.
    """
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {tuple(known)}")


def refuse(options: Mapping[str, object], because: str) -> None:
    """Refuse options that do not apply to a source; None means not given."""
    if given := [f"{name}={value!r}" for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{because}, where {', '.join(given)} does not apply; leave it out, or pass the path of a table"
        )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: object, most: int = 300) -> str:
    """The beginning of a message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."
