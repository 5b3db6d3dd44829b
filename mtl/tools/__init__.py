"""Atomic files, memory counting, comparisons of methods, and figures, shared by the other sub-packages."""

from mtl.tools.comparison import Comparison, MethodResult, mean_interval, paired_difference, verdicts
from mtl.tools.family_figure import family_figure
from mtl.tools.figures import accuracy_figure, curves_figure, episode_strip

__all__ = [
    "Comparison",
    "MethodResult",
    "accuracy_figure",
    "curves_figure",
    "episode_strip",
    "family_figure",
    "mean_interval",
    "paired_difference",
    "verdicts",
]
