"""What the tests of recipes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Recipes set the number of threads; the next test should not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
