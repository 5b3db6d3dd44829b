"""Families by part, and an account of what went where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtl.data.families.data_set import Family
from mtl.data.families.split import (
    PARTS,
    FamilyRequest,
    FamilyRule,
    FamilySplit,
    example_parts,
    load_or_make,
    make_split,
)
from mtl.data.own.collection import AbstractCollection


@dataclass(frozen=True, eq=False)
class DividedFamilies:
    """Families by part. No photograph is in two parts, whatever column it is asked about.

    Args:
        parts: for train, val and test the examples by class of each family, by name.
        unseen: families that no training sees: held out for the test or for validation.
        split: what was drawn.
        report: one line per family: examples and classes by part, and what was left out.
    """

    parts: Mapping[str, Mapping[str, AbstractCollection]]
    unseen: tuple[str, ...]
    split: FamilySplit
    report: tuple[str, ...]


def divide_families(
    families: Sequence[Family], path: str | Path | None = None, request: FamilyRequest | None = None
) -> DividedFamilies:
    """Divide families into train, val and test; with a ``path`` the draw is stored there and found again.

    Classes with fewer than ``request.min_per_class`` examples in a part are left out there, and families with fewer
    than ``request.ways`` classes in a part too.

    Raises:
        ValueError: see :class:`FamilyRequest`; or the stored split does not fit.
    """
    request = request or FamilyRequest()
    split = make_split(families, request) if path is None else load_or_make(path, families, request)
    part_of = {d: example_parts(d, families, split) for d in dict.fromkeys(f.data_set for f in families)}
    parts: dict[str, dict[str, AbstractCollection]] = {part: {} for part in PARTS}
    lines = []
    for family in families:
        rule, found, notes = split.rules[family.name], {}, []
        for part in PARTS:
            items = _items(family, rule, part, part_of[family.data_set])
            found[part] = {name: places for name, places in items.items() if len(places) >= request.min_per_class}
            if small := len(items) - len(found[part]):
                notes.append(f"{part}: {small} classes of fewer than {request.min_per_class}")
            if 0 < len(found[part]) < request.ways:
                notes.append(f"{part} as a whole: {len(found[part])} classes for {request.ways} ways")
                found[part] = {}
            if found[part]:
                parts[part][family.name] = family.data_set.examples.select(found[part])
        lines.append(_line(family, rule, found, notes))
    unseen = tuple(name for name, rule in split.rules.items() if rule.by in ("val", "test"))
    return DividedFamilies(parts, unseen, split, tuple(lines))


def _items(family: Family, rule: FamilyRule, part: str, part_of: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Positions by class of what a family has in a part."""
    if rule.by in PARTS and rule.by != part:
        return {}
    names = rule.parts[part] if rule.by == "class" else family.items
    places = {name: tuple(i for i in family.items[name] if part_of[i] == part) for name in names}
    return {name: found for name, found in places.items() if found}


def _line(family: Family, rule: FamilyRule, found: Mapping[str, Mapping[str, Sequence[int]]], notes: list[str]) -> str:
    how = {"class": "by class", "example": "by example"}.get(rule.by, f"{rule.by} only")
    counts = [f"{part} {sum(map(len, c.values())):,} in {len(c)} classes" for part, c in found.items() if c]
    blank = Counter(family.labels)[None]
    reason = family.data_set.column_notes.get(family.column)
    unlabelled = f"{blank:,} without a label" + (f", {reason}" if reason else "")
    notes = [*([unlabelled] if blank else []), *notes, *family.data_set.notes]
    noun, total = family.data_set.examples.noun, len(family.labels) - blank
    line = f"{family.name}: {total:,} {noun}, {len(family.items)} classes, {how}: {', '.join(counts) or 'nothing'}"
    return line + (f"; left out: {'; '.join(notes)}" if notes else "")
