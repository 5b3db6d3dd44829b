"""Atomic files, memory counting, comparisons of methods, and figures, shared by the other sub-packages."""

from typing import TYPE_CHECKING

from mtl.lazy import lazy

HOMES = {
    "mtl.tools.comparison": "Comparison MethodResult mean_interval paired_difference verdicts",
    "mtl.tools.episodes": "ShownEpisode episode_figure episode_pages",
    "mtl.tools.family_dots": "family_figure",
    "mtl.tools.figures": "accuracy_figure curves_figure",
    "mtl.tools.reliability_curves": "reliability_figure",
}
if TYPE_CHECKING:
    from mtl.tools.comparison import Comparison, MethodResult, mean_interval, paired_difference, verdicts
    from mtl.tools.episodes import ShownEpisode, episode_figure, episode_pages
    from mtl.tools.family_dots import family_figure
    from mtl.tools.figures import accuracy_figure, curves_figure
    from mtl.tools.reliability_curves import reliability_figure
else:
    __getattr__, __dir__ = lazy(__name__, HOMES)

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
