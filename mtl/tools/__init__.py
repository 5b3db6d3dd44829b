"""Atomic files, memory counting, comparisons of methods, and figures, shared by the other sub-packages."""

from mtl.tools.comparison import Comparison, MethodResult, mean_interval, paired_difference, verdicts
from mtl.tools.episodes import ShownEpisode, episode_figure, episode_pages
from mtl.tools.family_figure import family_figure
from mtl.tools.figures import accuracy_figure, curves_figure
from mtl.tools.reliability_figure import reliability_figure

__all__ = [
    "Comparison",
    "MethodResult",
    "ShownEpisode",
    "accuracy_figure",
    "curves_figure",
    "episode_figure",
    "episode_pages",
    "family_figure",
    "mean_interval",
    "paired_difference",
    "reliability_figure",
    "verdicts",
]
