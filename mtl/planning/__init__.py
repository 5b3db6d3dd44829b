"""Predict peak memory and time before renting a GPU: ``python -m mtl.planning``, see docs/planning.md."""

from mtl.planning.options import PlanOptions
from mtl.planning.planner import Plan, Predicted, plan

__all__ = ["Plan", "PlanOptions", "Predicted", "plan"]
