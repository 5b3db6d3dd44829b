"""report.html of a run's folder: finished, unfinished, old, damaged, and with names that are markup."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mtl
from mtl.cli.main import main as command_line
from mtl.cli.report import REPORT, results, write_report
from mtl.cli.report.elements import image
from mtl.cli.report.pictures import address
from mtl.tools import MethodResult
from mtl.tools.files import write_whole
from mtl.tools.reliability import Answers

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Tags, addresses and text of a page; refuses one whose tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.add(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def comparison(shots: int, families: int = 2, name: str = EVIL) -> mtl.Comparison:
    random = np.random.default_rng(shots)
    names = tuple(f"{name} {i}" for i in range(families) for _ in range(3))
    made = lambda lift: random.uniform(0, 0.4, len(names)) + lift  # noqa: E731
    sure = random.uniform(0.5, 1, (len(names), 10))
    answers = Answers(tuple(sure), tuple(random.random(sure.shape) < sure)) if families < 10 else None
    rows = (
        MethodResult("generator, 0 steps", "ours", made(0.6), 0.01, 100, answers=answers),
        MethodResult("ridge", "baseline", made(0.1), 0.001, 10, "l2=1"),
        MethodResult("static modulation", "control", made(0.3), 0.001, 10),
    )
    return mtl.Comparison(f"5-way {shots}-shot", names, rows, "generator, 0 steps", unseen=names[-1:])


def run_of(folder: Path, finished: bool = True, families: int = 2) -> Path:
    """A folder as a run leaves it; its networks are not there."""
    config = {
        "data": [f"photos/{EVIL}"], "shots": [5, 1], "generator": "channelwise", "backbone": "resnet18", "ways": 7,
        "memory": {"shard": True}, "made up": EVIL,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config, "versions": {"mtl": "0.1.0", "torch": EVIL}}))
    rule = {"by": "class", "parts": {"train": [EVIL, "b"], "val": [], "test": ["c"]}}
    (folder / "split.json").write_text(json.dumps({"families": {f"{EVIL} 0": rule}}))
    comparison(5, families).to_json(folder / "5-shot.json")
    if finished:
        comparison(1, families).to_json(folder / "1-shot.json")
        (folder / "finished.json").write_text("{}")
        write_whole(folder / "channelwise/final/generator.safetensors", b"")
    lines = [{"step": s + 1, "loss": 2.0 - s / 10, "accuracy": 0.5, "seconds": 0.5} for s in range(4)]
    write_whole(folder / "channelwise/0-inner-steps/metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
    (folder / "episodes.md").write_text(f"# trees: 1 of 2 right\n\n| | query |\n|---|---|\n| wrong | {EVIL} |\n")
    Image.new("RGB", (80, 60)).save(folder / "episodes.png")
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take seconds."""
    monkeypatch.setattr(results, "figure", lambda draw, words: image("data:image/png;base64,", words))


def test_the_page_of_a_finished_run(tmp_path):
    folder = run_of(tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert write_report(folder) == folder / REPORT
    text = (folder / REPORT).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert {a.partition(",")[0] for a in page.addresses if not a.startswith("#")} <= {
        "data:image/png;base64", "data:image/jpeg;base64",
    }  # fmt: skip
    assert {a[1:] for a in page.addresses if a.startswith("#")} == page.ids
    sections = "results families reliability episodes training next-commands settings data time versions files"
    assert page.ids == set(sections.split())
    pictures = sum(a.startswith("data:") for a in page.addresses)
    assert pictures == 1 + 2 + 2 + 1 + 1, "results, families, reliability, episodes, curves"
    assert "not finished" not in page.text
    assert "5-way 1-shot, unseen families: generator, 0 steps is right on" in page.text
    assert "mtl adapt --generator" in page.text
    assert "mtl export --task mine.mtl mine_onnx --to onnx" in page.text
    assert "ECE in % accuracy of the surest 90 %" in page.text
    assert "channelwise, 0 inner steps 4 0.5 0.0" in page.text, "median seconds per step, minutes"
    assert page.text.count(EVIL) > 10, "names are text, and all there"
    assert "prefers-color-scheme: dark" in text
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing else is changed"
    write_report(folder)
    assert (folder / REPORT).read_text(encoding="utf-8") == text, "the same again"


@pytest.mark.usefixtures("no_figures")
def test_settings_that_differ_come_first(tmp_path):
    text = Page(write_report(run_of(tmp_path / "run")).read_text()).text
    told = text[text.index("other than the defaults") : text.index("all settings")]
    assert "ways 7" in told
    assert "memory.shard yes" in told
    assert "generator channelwise" not in told, "that is the default"
    assert "generator channelwise" in text[text.index("all settings") :]


@pytest.mark.usefixtures("no_figures")
def test_the_page_of_an_unfinished_run_says_what_is_missing(tmp_path):
    folder = run_of(tmp_path / "run", finished=False)
    text = Page(write_report(folder).read_text()).text
    assert "This run is not finished" in text
    assert "the generator is not trained yet" in text
    assert "no table of 1-shot tasks yet" in text
    assert "5-shot tasks yet" not in text
    assert "mtl train --config" in text


def test_a_run_that_has_only_begun(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"shots": [1]}, "versions": {}}))
    page = Page(write_report(folder).read_text())
    assert page.ids == {"next-commands", "settings", "files"}
    assert "no table of 1-shot tasks yet" in page.text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("contents", ["", "{", "[]", '{"config": 1, "versions": []}', '{"families": [1]}'])
@pytest.mark.parametrize("name", ["config.json", "5-shot.json", "split.json"])
def test_damaged_files_are_named_and_left(name, contents, tmp_path):
    folder = run_of(tmp_path / "run", families=1)
    (folder / name).write_text(contents)
    page = Page(write_report(folder).read_text())
    if name == "5-shot.json" or not contents.startswith("{") or contents == "{":
        assert f"{name} is damaged" in page.text
    assert (folder / name).read_text() == contents


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"no run is there; expected a folder with config\.json"):
            write_report(folder)
    assert not list(tmp_path.iterdir())


def test_pictures_of_other_recipes_are_shown(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "maml.png")
    page = Page(write_report(tmp_path).read_text())
    assert "pictures" in page.ids
    assert len([a for a in page.addresses if a.startswith("data:")]) == 1


def test_a_large_run_is_a_page_of_bounded_size(tmp_path):
    folder = run_of(tmp_path / "run", families=120)
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "episodes.png")
    assert (folder / "episodes.png").stat().st_size > 4e6
    path = write_report(folder)
    assert path.stat().st_size < 3e6
    assert "20 more families are in the csv file" in html.unescape(path.read_text())


def test_pictures_become_as_small_as_asked():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8))
    stored = io.BytesIO()
    noise.save(stored, "png")
    small = address(stored.getvalue(), 20_000)
    kind, contents = re.fullmatch(r"data:image/(\w+);base64,(.*)", small).groups()  # type: ignore[union-attr]
    decoded = base64.b64decode(contents)
    assert (kind, len(decoded) <= 20_000) == ("jpeg", True)
    width, height = Image.open(io.BytesIO(decoded)).size
    assert width == height < 300
    assert address(stored.getvalue(), 10**6).startswith("data:image/png")


@pytest.mark.usefixtures("no_figures")
def test_the_command(tmp_path, capsys):
    folder = run_of(tmp_path / "run")
    command_line(["report", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / REPORT)
    assert (folder / REPORT).is_file()
    with pytest.raises(SystemExit):
        command_line(["report", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1
