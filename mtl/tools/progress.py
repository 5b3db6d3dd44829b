"""Progress bars, on a terminal or in a notebook: a log keeps lines, not bars that are drawn again and again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


class ProgressBar(tqdm):
    """tqdm's bar, which draws nothing where nobody watches.

    Args:
        items: what to go through; without it, ``update`` counts.
        show: draw it at all.
        options: of tqdm, such as ``desc``, ``unit``, ``total``, and ``delay`` in seconds.
    """

    def __init__(self, items: Iterable[Any] | None = None, *, show: bool = True, **options: Any) -> None:
        super().__init__(items, disable=not (show and watched()), **options)


def watched() -> bool:
    """Whether standard error is a terminal, or the program a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """A kernel runs this program; that one of its packages is imported says nothing."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
