"""Predict memory and time of every estimator before a GPU is rented; needs no weights.

mtl plan --backbone vit_large_patch14_dinov2 --inner-steps 20 --precision bf16 --budget 40
"""

from __future__ import annotations

from mtl.planning.__main__ import main
from mtl.planning.options import PlanOptions

Config = PlanOptions

__all__ = ["Config", "main"]
