"""What the tests of recipes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_data import LITTLE_ENCODER


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Recipes set the number of threads; the next test should not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text encoder that has seen next to nothing."""
    from assets import pretrain_docstrings

    config = pretrain_docstrings.Config(out=str(tmp_path_factory.mktemp("encoder") / "e"), **LITTLE_ENCODER)
    pretrain_docstrings.main(config)
    return config.out
