"""The bars that transformers draws when it reads weights: for whoever watches, and not for tiny networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def loading_bars(show: bool) -> Iterator[None]:
    """Whether transformers draws bars meanwhile, unless they were switched off before.

    Args:
        show: leave them as they are.
    """
    if show or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
