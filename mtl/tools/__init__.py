"""What the other sub-packages share: safe files, memory counting, comparisons of methods, and figures."""

from mtl.tools.comparison import Comparison, MethodResult, mean_interval, paired, verdicts
from mtl.tools.figures import accuracy_figure, curves_figure, episode_strip

__all__ = [
    "Comparison",
    "MethodResult",
    "accuracy_figure",
    "curves_figure",
    "episode_strip",
    "mean_interval",
    "paired",
    "verdicts",
]
