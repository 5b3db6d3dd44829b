"""Generators: what turns a support set into the start of an inner loop."""

from mtl.fewshot.generators.base import AbstractGenerator, SupportView
from mtl.fewshot.generators.conditioned import SupportConditioned
from mtl.fewshot.generators.static import Static
from mtl.fewshot.generators.task_code import TaskCode

GENERATORS: dict[str, type[AbstractGenerator]] = {"conditioned": SupportConditioned, "static": Static, "code": TaskCode}

__all__ = ["GENERATORS", "AbstractGenerator", "Static", "SupportConditioned", "SupportView", "TaskCode"]
