"""Progress bars are for whoever watches; a log gets none."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import transformers

import mtl
from mtl.tools.progress import ProgressBar, watched

ROOT = Path(__file__).parent.parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "show", "drawn"), [(Terminal(), True, True), (Terminal(), False, False)])
def test_a_terminal_shows_bars_that_are_wanted(stream, show, drawn, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(ProgressBar(range(3), show=show, desc="tasks")) == [0, 1, 2]
    assert ("tasks" in stream.getvalue()) == drawn


def test_a_log_shows_none_and_still_counts(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with ProgressBar(total=2, desc="steps") as bar:
        bar.update()
        bar.set_postfix(loss="1.0")
        bar.set_description("other")
    assert list(ProgressBar(iter("ab"))) == ["a", "b"]
    assert log.getvalue() == ""


def test_a_kernel_shows_bars_and_an_import_of_its_package_does_not(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    shell = SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert not watched()
    shell.get_ipython = lambda: SimpleNamespace(kernel="runs")
    assert watched()


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_log_shows_no_bar_of_transformers(stream, tmp_path: Path, monkeypatch):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()
    try:
        monkeypatch.setattr(sys, "stderr", stream)
        mtl.load_backbone(str(tmp_path))
        assert transformers.utils.logging.is_progress_bar_enabled(), "as it was before"
    finally:
        if not enabled:
            transformers.utils.logging.disable_progress_bar()
    assert ("Loading weights" in stream.getvalue()) == stream.isatty()


def test_there_is_one_kind_of_bar():
    files = [*(ROOT / "mtl").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    own = [p for p in files if re.search(r"^ *(from|import) tqdm", p.read_text(), re.MULTILINE)]
    assert own == [ROOT / "mtl" / "tools" / "progress.py"]
