"""Generators: networks that turn a support set into the start of an inner loop."""

from mtl.fewshot.generators.base import (
    GENERATORS,
    AbstractGenerator,
    AbstractSiteGenerator,
    Learn,
    StepSizes,
    SupportView,
)
from mtl.fewshot.generators.channelwise import ChannelWise
from mtl.fewshot.generators.conditioned import SupportConditioned
from mtl.fewshot.generators.making import make_generator
from mtl.fewshot.generators.refined import Refined
from mtl.fewshot.generators.standardising import Standard
from mtl.fewshot.generators.static import Static
from mtl.fewshot.generators.task_code import TaskCode

__all__ = [
    "GENERATORS",
    "AbstractGenerator",
    "AbstractSiteGenerator",
    "ChannelWise",
    "Learn",
    "Refined",
    "Standard",
    "Static",
    "StepSizes",
    "SupportConditioned",
    "SupportView",
    "TaskCode",
    "make_generator",
]
