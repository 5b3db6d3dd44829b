"""A heat map of a matrix with names, such as the affinities of families of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtl.tools.figures import INK, figure_file

CELL = 0.38  # inches
COLOURS = "RdBu"  # red below zero, blue above: apart for colour-blind readers too


def heat_map_figure(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    path: str | Path,
    *,
    blocks: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """Colours of a matrix, white for zero; returns the figure, see :mod:`mtl.tools.figures`.

    Args:
        values: ``(rows, columns)``.
        blocks: sizes of blocks along the diagonal that get a frame.
        title: above.

    Raises:
        ValueError: names do not fit the matrix, or another suffix than .png, .svg or .pdf.
    """
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"values of shape {values.shape}: expected a row per name, ({len(rows)}, {len(columns)})")
    longest = 0.085 * max(map(len, (*rows, *columns)))
    with figure_file(path, 2 + longest + CELL * len(columns), 1 + longest + CELL * len(rows)) as figure:
        axes = figure.subplots()
        most = float(np.abs(values).max()) or 1.0
        image = axes.imshow(values, cmap=COLOURS, vmin=-most, vmax=most)
        axes.set_xticks(range(len(columns)), list(columns), rotation=90, fontsize=10)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=10)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        start = 0
        for size in blocks:
            axes.add_patch(Rectangle((start - 0.5, start - 0.5), size, size, fill=False, edgecolor=INK, linewidth=1.5))
            start += size
        if title:
            axes.set_title(title, fontsize=12)
        figure.colorbar(image, ax=axes, shrink=0.7)
    return figure
