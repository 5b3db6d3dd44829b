"""Learn what and where to transfer from a frozen source network to a fully trained target network."""

from mtl.transfer.drawing import pairs_figure
from mtl.transfer.matching import Student, attention_loss, matching_loss
from mtl.transfer.problem import Labelled, Matched, Transfer, set_gradients
from mtl.transfer.source import Source, SourceMaps
from mtl.transfer.taps import Tap, Taps, stage_names
from mtl.transfer.weighting import MatchingWeights, PairWeights

__all__ = [
    "Labelled",
    "Matched",
    "MatchingWeights",
    "PairWeights",
    "Source",
    "SourceMaps",
    "Student",
    "Tap",
    "Taps",
    "Transfer",
    "attention_loss",
    "matching_loss",
    "pairs_figure",
    "set_gradients",
    "stage_names",
]
