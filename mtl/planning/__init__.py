"""Peak memory and time before a GPU is rented: ``python -m mtl.planning``, see docs/planning.md."""

from mtl.planning.config import Config
from mtl.planning.planner import Plan, Predicted, plan

__all__ = ["Config", "Plan", "Predicted", "plan"]
