"""One thread in every process, and two processes for the whole suite, each with a file at a time."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for ``python -m pytest``; none where files or tests are named, which start faster without."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0
