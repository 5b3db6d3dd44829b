"""Episodes for people: pictures with names and answers, pages of texts, and names of the embedded glyphs' classes."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import mtl
from mtl.episode import Readable
from mtl.tools import ShownEpisode, episode_figure, episode_pages
from mtl.tools.figures import RIGHT, WRONG

NAMES = ("ash", "the $2 coin, seen from the side of the queen and of the lion", "<b>elm</b> | tree")


def episode(shots: int = 2, queries: int = 4, ways: int = 3) -> ShownEpisode:
    """Of small pictures; the first query is taken for the third class with 60 %, the others are right with 80 %."""
    random = np.random.default_rng(0)
    names = (*NAMES, *(f"class {i}" for i in range(ways)))[:ways]
    labels, truth = (np.arange(ways).repeat(n) for n in (shots, queries))
    probabilities = np.full((len(truth), ways), 0.2 / (ways - 1))
    probabilities[np.arange(len(truth)), truth] = 0.8
    probabilities[0] = np.eye(ways)[2] * 0.6 + np.eye(ways)[0] * 0.4
    support = [Image.fromarray(p) for p in random.integers(0, 255, (len(labels), 6, 9), dtype=np.uint8)]
    asked = list(random.integers(0, 255, (len(truth), 9, 6, 3), dtype=np.uint8))
    return ShownEpisode("trees", names, support, labels, asked, truth, probabilities)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_names_answers_and_frames(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # no backend is chosen
    figure = episode_figure([episode(), episode()], tmp_path / "e.png", queries=2)
    assert (tmp_path / "e.png").stat().st_size > 5000
    [panel] = figure.axes
    assert len(panel.images) == 2 * (6 + 6)
    colors = [to_hex(patch.get_edgecolor()) for patch in panel.patches]
    assert colors == [WRONG, *[RIGHT] * 5] * 2
    said = words(figure)
    assert said.count("trees: 11 of 12 queries right") == 2, "all queries count"
    assert said.count("\N{BALLOT X} 60 %") == 2
    assert said.count("\N{CHECK MARK} 80 %") == 10
    assert said.count("ash") == 2 * 2, "a heading, and one of two queries: the other is taken for the third class"
    assert said.count("<b>elm</b> | tree") == 2
    long = [text for text in panel.texts if text.get_text().startswith("the $2")]
    assert all(text.get_text().endswith("…") for text in long if float(text.get_fontsize()) > 12)
    assert not any(text.get_parse_math() for text in long)


def test_many_classes_and_shots_do_not_overlap(tmp_path):
    figure = episode_figure([episode(shots=7, queries=5, ways=23)], tmp_path / "many.svg", shots=5)
    figure.canvas.draw()
    assert "and 3 more classes" in words(figure)
    panel = figure.axes[0]
    assert len(panel.images) == 20 * (5 + 3)
    boxes = [image.get_extent() for image in panel.images]
    places = {(round(box[0]), round(box[3])) for box in boxes}
    assert len(places) == len(boxes)
    drawn = [text.get_window_extent() for text in panel.texts if text.get_text()]
    crossing = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if a.overlaps(b)]
    assert len(crossing) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"support_labels": np.zeros(5)}, "6 support examples with 5 labels"),
        ({"query_labels": np.zeros(5)}, "12 queries with 5 labels"),
        ({"probabilities": np.zeros((12, 2))}, r"\(12, 2\) of 3 classes"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(episode(), **wrong)


def test_no_episode_is_no_figure(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        episode_figure([], tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_pages_of_texts():
    texts = {"support": [f"s{i} | of\nlines" for i in range(6)], "queries": [f"q{i}" * 200 for i in range(12)]}
    lines = episode_pages([replace(episode(), **texts)], queries=2).splitlines()
    assert lines[0] == "# trees: 11 of 12 queries right"
    assert "| ash | s0 / of lines |" in lines
    [wrong] = [line for line in lines if line.startswith("| wrong")]
    assert wrong.endswith("… | <b>elm</b> / tree | 60 % | ash |")
    assert sum(line.startswith("| right") for line in lines) == 5
    assert {line.count("|") for line in lines if line.startswith("| right")} == {6}


@pytest.mark.parametrize("family", ["character", "typeface", "orientation", "defect"])
def test_glyph_tasks_are_read_as_they_are_sampled(family):
    tasks = mtl.GlyphTasks("test", ways=4, shots=2, queries=3, families=(family,))
    assert isinstance(tasks, Readable)
    names, support, queries = tasks.read(5)
    assert len(set(names)) == 4
    assert (len(support), len(queries)) == (8, 12)
    seen = tasks.sample(5).query.inputs.tensor[0, :, 0].numpy() * 0.3 + 0.7
    shown = np.stack([np.asarray(q) / 255 for q in queries])
    np.testing.assert_allclose(shown, seen.clip(0, 1), atol=0.6 / 255)
