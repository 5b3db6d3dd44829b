"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def did_you_mean(
    name: object, names: Iterable[object], most: int = 1, cutoff: float = 0.6, show: Callable[[str], str] = str
) -> str:
    """A question with the names that look like it, the likest first; empty where none does.

    >>> did_you_mean("scrach", ["scratch", "dent"])
    'did you mean scratch?'
    >>> did_you_mean("dents", ["dent", "dent 2", "scratch"], 3, show=repr)
    "did you mean 'dent' or 'dent 2'?"

    Args:
        most: names to offer.
        cutoff: how like they have to be, from 0 to 1 (a name itself).
        show: ``repr`` where names may have spaces in them.
    """
    near = difflib.get_close_matches(str(name), list(map(str, names)), most, cutoff)
    return f"did you mean {' or '.join(map(show, near))}?" if near else ""
