"""Families of tasks: several data sets, several label columns, and one generator for all of them."""

from mtl.data.families.data_set import DataSet, Family
from mtl.data.families.divided import DividedFamilies, divide_families
from mtl.data.families.opening import open_families
from mtl.data.families.split import FamilyRequest, FamilySplit
from mtl.data.families.tasks import EvaluationTasks, FamilyTasks

__all__ = [
    "DataSet",
    "DividedFamilies",
    "EvaluationTasks",
    "Family",
    "FamilyRequest",
    "FamilySplit",
    "FamilyTasks",
    "divide_families",
    "open_families",
]
