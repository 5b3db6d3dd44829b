"""The last lines of a command: where things are, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

PICTURES = ("*.png", "episodes.md", "report.html")


def closing(facts: Mapping[str, str | Path | Sequence[Path]], following: Sequence[str]) -> None:
    """Print facts in a column, those that are empty left out, and the next command.

    Args:
        facts: ``{"tables": paths}``.
        following: commands to choose from, one line each.
    """
    rows = [(name, [value] if isinstance(value, str | Path) else value) for name, value in facts.items()]
    rows += [("next" if i == 0 else "or", [line]) for i, line in enumerate(following)]
    print()
    for name, values in rows:
        for i, value in enumerate(values):
            print(f"{'' if i else name:<10} {value}")


def pictures_of(out: Path) -> list[Path]:
    """Pictures and pages to read in the folder of a run."""
    return [path for pattern in PICTURES for path in sorted(out.glob(pattern))]


def command(*words: str | Path) -> str:
    """A line to type, with quotes where a shell needs them."""
    return shlex.join(map(str, words))
