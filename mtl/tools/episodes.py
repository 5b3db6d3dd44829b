"""Episodes to look at: what a task's classes are, its support set, and what was said of its queries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from mtl.tools.figures import GREY, INK, PALE, RIGHT, WRONG, figure_file

SIDE = 0.9  # inches of a picture
ACROSS = 3  # pictures side by side in the column of a class
BAND = 5  # classes side by side; more go below
MOST_CLASSES = 20
GAP, STEP = 0.35, 1.1  # between classes, and from picture to picture, in pictures
TITLE, NAME, ANSWER, BETWEEN = 0.5, 0.36, 0.74, 0.2  # heights, in pictures
SMALL = 96  # pixels; a picture with shorter sides is shown pixel by pixel
TEXT = 200  # letters of a text that are shown


@dataclass(frozen=True, eq=False)
class ShownEpisode:
    """One episode for people.

    Args:
        family: the kind of task.
        names: of the classes, ``ways`` of them.
        support, queries: as people know them: texts, PIL images, or arrays ``(height, width)`` or
            ``(height, width, 3)`` of bytes.
        support_labels, query_labels: positions in ``names``, ``(support,)`` and ``(queries,)``.
        probabilities: of the classes for each query, ``(queries, ways)`` in ``0 .. 1``.

    Raises:
        ValueError: the numbers of examples, labels, names and probabilities do not fit together, or no query is there.
    """

    family: str
    names: tuple[str, ...]
    support: Sequence[Any]
    support_labels: np.ndarray
    queries: Sequence[Any]
    query_labels: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        counts = len(self.support), len(self.support_labels), len(self.queries), len(self.query_labels)
        shape = self.probabilities.shape
        if counts[0] != counts[1] or not counts[2] == counts[3] > 0 or shape != (counts[2], len(self.names)):
            raise ValueError(
                f"episode of {self.family}: {counts[0]} support examples with {counts[1]} labels, {counts[2]} queries "
                f"with {counts[3]} labels and probabilities {shape} of {len(self.names)} classes do not fit together"
            )

    @property
    def guesses(self) -> np.ndarray:
        """The most likely class of each query, ``(queries,)``."""
        return self.probabilities.argmax(1)

    @property
    def title(self) -> str:
        """The kind of task, and how many of all queries were right."""
        right = int((self.guesses == self.query_labels).sum())
        return f"{self.family}: {right} of {len(self.queries)} queries right"

    def members(self, label: int, shots: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the first examples of a class in the support set, and among the queries."""
        of_class = (np.flatnonzero(labels == label) for labels in (self.support_labels, self.query_labels))
        support, query = (places[:most] for places, most in zip(of_class, (shots, queries), strict=True))
        return support, query


def episode_figure(episodes: Sequence[ShownEpisode], path: str | Path, shots: int = 6, queries: int = 3) -> Figure:
    """Episodes of pictures, one below the other: a column per class with its support examples above its queries.

    Below each query stands what was predicted and with which probability; a wrong one has a thick frame and a cross.
    Queries are not selected by outcome: they are the first of each class. The title counts all of them.

    Args:
        episodes: of pictures.
        path: ends in ``.png``, ``.svg`` or ``.pdf``.
        shots, queries: most pictures that are shown of each class.

    Raises:
        ValueError: no episode.
    """
    if not episodes:
        raise ValueError("episode_figure needs at least one episode")
    with figure_file(path, 1, 1, dpi=120) as figure:  # resized below to fit its contents
        panel, y, right = figure.add_subplot(), 0.0, 0.0
        for episode in episodes:
            end, y = _draw_episode(panel, episode, y, shots, queries)
            right = max(right, end)
        figure.set_size_inches(SIDE * (right + 0.6) + 0.2, SIDE * y + 0.2)
        panel.set(xlim=(-0.5, right + 0.1), ylim=(y, 0), aspect="equal")
        panel.set_axis_off()
    return figure


def _draw_episode(panel: Axes, episode: ShownEpisode, y: float, shots: int, queries: int) -> tuple[float, float]:
    """Draw an episode below ``y``; return its right end and its lower one."""
    _write(panel, 0, y + 0.3, episode.title, 15, math.inf, fontweight="bold")
    y += TITLE
    shown = min(len(episode.names), MOST_CLASSES)
    width, right = ACROSS * STEP + GAP, 0.0
    for first in range(0, shown, BAND):
        labels = range(first, min(first + BAND, shown))
        members = {label: episode.members(label, shots, queries) for label in labels}
        rows = [max(math.ceil(len(side) / ACROSS) for side in sides) for sides in zip(*members.values(), strict=True)]
        below = y + NAME + rows[0] * STEP + 0.2  # where the queries begin
        for place, (label, (support, query)) in enumerate(members.items()):
            x = place * width
            _write(panel, x, y + 0.22, episode.names[label], 13, ACROSS * STEP, color=INK)
            for i, (column, row) in zip(support, _grid(len(support)), strict=True):
                _draw(panel, episode.support[i], x + column * STEP, y + NAME + row * STEP)
            panel.plot([x, x + ACROSS * STEP - 0.06], [below - 0.13] * 2, color=PALE, linewidth=2)
            for i, (column, row) in zip(query, _grid(len(query)), strict=True):
                _draw_query(panel, episode, int(i), x + column * STEP, below + row * (STEP + ANSWER))
            right = max(right, x + ACROSS * STEP)
        look: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top", "color": GREY, "fontsize": 12}
        panel.text(-0.12, y + NAME, "support", **look)
        panel.text(-0.12, below, "queries", **look)
        y = below + rows[1] * (STEP + ANSWER) + 0.15
    if hidden := len(episode.names) - shown:
        _write(panel, 0, y + 0.1, f"and {hidden} more classes", 12, math.inf, color=GREY)
        y += 0.3
    return right, y + BETWEEN


def _grid(count: int) -> Iterator[tuple[int, int]]:
    """Column and row of each of so many pictures."""
    return ((i % ACROSS, i // ACROSS) for i in range(count))


def _draw_query(panel: Axes, episode: ShownEpisode, i: int, x: float, y: float) -> None:
    guess = int(episode.guesses[i])
    right = guess == episode.query_labels[i]
    color = RIGHT if right else WRONG
    left, top, width, height = _draw(panel, episode.queries[i], x, y)
    look: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 1.5 if right else 4}
    panel.add_patch(Rectangle((left, top), width, height, **look))
    mark = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
    said = f"{mark} {100 * episode.probabilities[i, guess]:.0f} %"
    _write(panel, x, y + 1.24, said, 10.5, 1.0, color=color, fontweight="bold")
    for line, text in enumerate(_two_lines(episode.names[guess], FontProperties(size=10), 72 * SIDE * 1.04)):
        _write(panel, x, y + 1.45 + 0.19 * line, text, 10, 1.05, color=color)


def _draw(panel: Axes, picture: Any, x: float, y: float) -> tuple[float, float, float, float]:
    """Draw a picture into the unit square right of ``x`` and below ``y``; return its left, top, width and height."""
    pixels = np.asarray(picture)
    height, width = np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    smooth = "nearest" if max(pixels.shape[:2]) < SMALL else "auto"
    extent = (left, left + width, top + height, top)
    panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation=smooth)
    return left, top, width, height


def _write(panel: Axes, x: float, y: float, text: str, size: float, width: float, **look: Any) -> None:
    """One line, shortened to ``width`` pictures. A dollar sign in a name is no formula."""
    font = FontProperties(size=size, weight=look.get("fontweight"))
    panel.text(
        x, y, shortened(" ".join(text.split()), font, 72 * SIDE * width), fontsize=size, parse_math=False, **look
    )


def _two_lines(name: str, font: FontProperties, points: float) -> list[str]:
    """As many words of a name as fit on a line, and the rest."""
    words = name.split()
    for count in range(len(words), 0, -1):
        first = " ".join(words[:count])
        if shortened(first, font, points) == first or count == 1:
            return [first, " ".join(words[count:])]
    return []


def shortened(text: str, font: FontProperties, points: float) -> str:
    """A text, or as much of its beginning as is no wider than so many points, and dots."""
    while len(text) > 1 and text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] > points:
        text = f"{text.removesuffix('…')[:-1].rstrip()}…"
    return text


def episode_pages(episodes: Sequence[ShownEpisode], queries: int = 3) -> str:
    """Episodes of texts as a page of Markdown: an example of each class, and queries with what was predicted.

    Args:
        episodes: of texts.
        queries: most that are shown of each class, the first ones.
    """
    lines = []
    for episode in episodes:
        lines += [f"# {_plain(episode.title)}", "", "| class | one of its examples |", "|---|---|"]
        answers = []
        for label, name in enumerate(episode.names[:MOST_CLASSES]):
            support, query = episode.members(label, 1, queries)
            lines += [f"| {_plain(name)} | {_plain(episode.support[i])} |" for i in support]
            answers += [_answer(episode, int(i)) for i in query]
        lines += ["", "| | query | predicted | probability | is |", "|---|---|---|---:|---|", *answers, ""]
    return "\n".join(lines)


def _answer(episode: ShownEpisode, i: int) -> str:
    guess, truth = int(episode.guesses[i]), int(episode.query_labels[i])
    cells = [_plain(episode.queries[i]), _plain(episode.names[guess])]
    sure = f"{100 * episode.probabilities[i, guess]:.0f} %"
    return (
        f"| {'right' if guess == truth else 'wrong'} | {' | '.join([*cells, sure])} | {_plain(episode.names[truth])} |"
    )


def _plain(text: Any) -> str:
    """A text that fits into a cell of a Markdown table."""
    text = " ".join(str(text).replace("|", "/").split())
    return text if len(text) <= TEXT else f"{text[:TEXT]}…"
