"""One thread in every process, and two processes for the whole suite, each with a file at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_data import LITTLE_ENCODER, pictures, text_table

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for ``python -m pytest``; none where files or tests are named, which start faster without."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text encoder that has seen next to nothing."""
    from assets import pretrain_docstrings

    config = pretrain_docstrings.Config(out=str(tmp_path_factory.mktemp("encoder") / "e"), **LITTLE_ENCODER)
    pretrain_docstrings.main(config)
    return config.out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``labelled`` and ``new`` images, ``labelled.csv`` and ``new.txt``."""
    pictures(tmp_path / "labelled", 3, 4)
    pictures(tmp_path / "new", 3, 2)
    text_table(tmp_path / "labelled.csv", 3, 4)
    (tmp_path / "new.txt").write_text("a text of a kind\nanother of a kind of a kind\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path
