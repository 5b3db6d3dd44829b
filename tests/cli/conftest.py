"""A text encoder, images and texts that the commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_data import LITTLE_ENCODER, pictures, text_table


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
