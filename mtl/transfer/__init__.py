"""Learning what and where to transfer from a frozen source to a target whose weights all move."""

from mtl.transfer.drawing import pairs_figure
from mtl.transfer.matching import Student, attention_loss, matching_loss
from mtl.transfer.problem import Batch, Transfer, add_gradients
from mtl.transfer.source import Source
from mtl.transfer.taps import Tap, Taps, stage_names
from mtl.transfer.weighting import Choice, MatchingWeights

__all__ = [
    "Batch",
    "Choice",
    "MatchingWeights",
    "Source",
    "Student",
    "Tap",
    "Taps",
    "Transfer",
    "add_gradients",
    "attention_loss",
    "matching_loss",
    "pairs_figure",
    "stage_names",
]
