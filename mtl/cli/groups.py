"""Options of one flat dataclass, in groups for the help: what a run reads, how it trains, what it compares."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from mtl.cli.options import Checked

C = TypeVar("C")
LINE = re.compile(r"^ {4}(\w+): .*?  # (.+)$")
BEFORE = re.compile(r"^ {4}# (.+)$")


def grouped(config: type) -> type:
    """A dataclass with a part for each group of options, whose names on the command line are the same.

    It checks nothing: a mistyped option is named first, and what the others then lack is not.
    """
    groups = _groups_of(config)
    hints, help_of = get_type_hints(config, include_extras=True), comments_of(config)
    own = {f.name: f for f in fields(config)}
    inside = {name for names in groups.values() for name in names}

    def column(f: Field[Any]) -> tuple[str, Any, Any]:
        shown = Annotated[hints[f.name], tyro.conf.arg(help=help_of[f.name])] if f.name in help_of else hints[f.name]
        return f.name, shown, field(default=f.default, default_factory=f.default_factory)  # type: ignore[arg-type]

    parts = [column(f) for f in own.values() if f.name not in inside]
    alone = [p for p in parts if isinstance(p[2].default_factory, type(MISSING))]
    nested = [p for p in parts if p not in alone]
    for group, names in groups.items():
        part = make_dataclass(group, [column(own[n]) for n in names if n in own], frozen=True)
        part.__doc__ = ""
        alone.append((group, Annotated[part, tyro.conf.OmitArgPrefixes], field(default_factory=part)))
    made = make_dataclass(config.__name__, [*alone, *nested], frozen=True)
    made.__doc__ = ""
    return made


def ungrouped(config: type[C], found: Any) -> C:
    """The flat dataclass of what :func:`grouped` parsed."""
    groups = _groups_of(config)
    flat = {name: value for name, value in vars(found).items() if name not in groups}
    for group in groups:
        flat |= vars(getattr(found, group))
    return config(**flat)


def _groups_of(config: type) -> Mapping[str, tuple[str, ...]]:
    """Those of which the dataclass has an option."""
    own = {f.name for f in fields(config)}
    declared = config.groups if issubclass(config, Checked) else {}
    return {group: names for group, names in declared.items() if own & set(names)}


@cache
def comments_of(config: type) -> dict[str, str]:
    """The comment beside each field, or on the line before it: its help. Those of a subclass count first."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        before = ""
        for line in _source_of(cls):
            if match := LINE.match(line):
                found[match[1]] = match[2]
            elif before and (name := re.match(r"^ {4}(\w+): ", line)):
                found[name[1]] = before
            before = match[1] if (match := BEFORE.match(line)) else ""
    return found


def _source_of(cls: type) -> list[str]:
    try:
        return inspect.getsource(cls).splitlines()
    except (OSError, TypeError):  # made by a program
        return []
