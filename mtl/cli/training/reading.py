"""Settings for reading data of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Reading:
    """How files are read; docs/own-images.md and docs/own-texts.md say what is accepted."""

    encoding: str | None = None  # of tables and texts that are neither UTF-8 nor say what they are, such as latin-1
    class_level: Literal[1, 2] | None = None  # the classes are the outer folders (1), or the folders in them (2)

    def asked(self) -> list[str]:
        """The options that were given, as they are typed."""
        return [f"--{k.replace('_', '-')}" for k, value in vars(self).items() if value is not None]


def told(notes: tuple[str, ...]) -> None:
    """Print what was left out, one line each."""
    for note in notes:
        print(note)


def smallest_class(config: Any) -> int:
    """Examples that a class needs: for the most shots, and the queries."""
    return max(config.shots) + config.queries
