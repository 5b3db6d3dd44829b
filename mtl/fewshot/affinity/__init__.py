"""Task affinity: which families of tasks help each other, and which to train on together."""

from mtl.fewshot.affinity.estimating import SubsetEstimator, fit
from mtl.fewshot.affinity.grouping import group
from mtl.fewshot.affinity.linearising import Linearised
from mtl.fewshot.affinity.measuring import Affinity, affinities, affinity, draw_subsets

__all__ = ["Affinity", "Linearised", "SubsetEstimator", "affinities", "affinity", "draw_subsets", "fit", "group"]
