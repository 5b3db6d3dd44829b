"""Pulls by name."""

from __future__ import annotations

from collections.abc import Callable

from mtl.metagrad.products.automatic import Automatic
from mtl.metagrad.products.base import AbstractPull
from mtl.metagrad.products.differences import FiniteDifference
from mtl.metagrad.products.forward import ForwardOverReverse
from mtl.metagrad.products.reverse import Reverse

PullChoice = str | AbstractPull
"""A pull, or its name."""

PULLS: dict[str, Callable[[], AbstractPull]] = {
    "reverse": Reverse,
    "forward-over-reverse": ForwardOverReverse,
    "finite-difference": FiniteDifference,
    "one-sided-difference": lambda: FiniteDifference(1e-3, sides=1),
    "auto": Automatic,
}


def as_pull(pull: str | AbstractPull) -> AbstractPull:
    """A pull by name.

    Raises:
        ValueError: for a name that is none.

    >>> as_pull("reverse")
    Reverse()
    """
    if isinstance(pull, AbstractPull):
        return pull
    if pull not in PULLS:
        raise ValueError(f"pull={pull!r}: expected one of {sorted(PULLS)} or an instance of a pull")
    return PULLS[pull]()
