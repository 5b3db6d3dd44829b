"""Ranges of command-line options: declared with the option, and checked before anything is read, loaded or written."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import tyro

from mtl.tools.hints import did_you_mean


@runtime_checkable
class Rule(Protocol):
    """Stands in the ``Annotated`` type of an option."""

    def expected(self, value: Any) -> str:
        """What was expected of the value; empty where it is right."""
        ...


@dataclass(frozen=True)
class Range:
    """A finite number.

    Args:
        least: the smallest; or where the numbers begin, with ``above``.
        most: the largest.
        above: leave out ``least`` itself.
    """

    least: float
    most: float = math.inf
    above: bool = False

    def expected(self, value: Any) -> str:
        inside = value > self.least if self.above else value >= self.least
        if inside and value <= self.most and abs(value) < math.inf:
            return ""
        if self.most < math.inf:
            return f"a number from {self.least:.10g} to {self.most:.10g}"
        return f"a number above {self.least:.10g}" if self.above else f"{self.least:.10g} or more"


@dataclass(frozen=True)
class Distinct:
    """At least one value, and none twice."""

    def expected(self, value: Sequence[Any]) -> str:
        if not value:
            return "at least one"
        twice = [v for i, v in enumerate(value) if v in value[:i]]
        return f"each once, but {twice[0]} is there twice" if twice else ""


@dataclass(frozen=True)
class Filled:
    """A text or a list that is not empty."""

    def expected(self, value: Any) -> str:
        if isinstance(value, str):
            return "" if value.strip() else "a name"
        return "" if value else "at least one"


@dataclass(frozen=True)
class OneOf:
    """A name out of some."""

    names: tuple[str, ...]

    def expected(self, value: str) -> str:
        if value in self.names:
            return ""
        meant = did_you_mean(value, self.names)
        separator = "; " if any("," in name for name in self.names) else ", "
        return f"one of {separator.join(self.names)}" + (f" ({meant})" if meant else "")


@dataclass(frozen=True)
class OnThisMachine:
    """The name of a device that is there; empty for the accelerator, if there is one."""

    def expected(self, value: str) -> str:
        import torch  # help needs none of it, and it takes a second

        there = ["cpu"]
        if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
            numbered = (f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))
            there += [accelerator.type, *numbered]
        return "" if value in ("", *there) else f"a device of this machine: {', '.join(there)}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
TwoOrMore = Annotated[int, Range(2)]
Positive = Annotated[float, Range(0, above=True)]
PositiveOrZero = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
CountList = Annotated[tuple[Count, ...], Filled()]  # some may be there twice
Counts = Annotated[tuple[Count, ...], Distinct()]
Positives = Annotated[tuple[Positive, ...], Distinct()]
Seeds = Annotated[tuple[Seed, ...], Distinct()]
Folder = Annotated[str, Filled()]
Device = Annotated[str, OnThisMachine()]


class Checked:
    """A dataclass of options that refuses wrong ones as soon as it is made.

    Raises:
        ValueError: one line, with each wrong option, its value and what was expected.
    """

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Titles in the help, and the options under each."""

    def __post_init__(self) -> None:
        # What options say together is only asked of options that are right by themselves.
        if wrong := [*_wrong_options(self)] or [*self.contradictions()]:
            raise ValueError("; ".join(wrong))

    def contradictions(self) -> Iterator[str]:
        """What is wrong with options that are right by themselves."""
        return iter(())


def complaints_of(*checks: Callable[[], object]) -> Iterator[str]:
    """What checks raise as ``ValueError``."""
    for check in checks:
        try:
            check()
        except ValueError as error:
            yield str(error)


def _wrong_options(options: Any, prefix: str = "") -> Iterator[str]:
    """All options that break a rule, by their names on the command line."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if is_dataclass(value):
            flat = tyro.conf.OmitArgPrefixes in get_args(hint)
            yield from _wrong_options(value, prefix if flat else f"{prefix}{field.name}.")
            continue
        for wrong, expected in _broken(value, hint):
            flag = f"--{prefix}{field.name}".replace("_", "-")
            shown = " ".join(map(str, wrong)) if isinstance(wrong, tuple) else str(wrong)
            yield f"{flag} {shown or repr(shown)}: expected {expected}"


def _broken(value: Any, hint: Any) -> Iterator[tuple[Any, str]]:
    """The value, or the part of it, that breaks a rule of its type, and what was expected."""
    if value is None:
        return
    if get_origin(hint) is Annotated:
        inner, *rules = get_args(hint)
        broken = [(value, e) for rule in rules if isinstance(rule, Rule) and (e := rule.expected(value))]
        yield from broken or _broken(value, inner)
    elif get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)
        if not any(get_origin(part) is Literal and value in get_args(part) for part in parts):  # a word, or a number
            for part in parts:
                yield from _broken(value, part)
    elif get_origin(hint) is tuple and isinstance(value, tuple):
        for member in value:
            yield from _broken(member, get_args(hint)[0])
