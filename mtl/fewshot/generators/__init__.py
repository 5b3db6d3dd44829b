"""Generators: networks that turn a support set into the start of an inner loop."""

from mtl.fewshot.generators.base import GENERATORS, AbstractGenerator, AbstractSiteGenerator, StepSizes, SupportView
from mtl.fewshot.generators.conditioned import SupportConditioned
from mtl.fewshot.generators.static import Static
from mtl.fewshot.generators.task_code import TaskCode

__all__ = [
    "GENERATORS",
    "AbstractGenerator",
    "AbstractSiteGenerator",
    "Static",
    "StepSizes",
    "SupportConditioned",
    "SupportView",
    "TaskCode",
]
