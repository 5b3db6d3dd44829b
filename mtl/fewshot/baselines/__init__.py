"""Few-shot classification without meta-learning, on the same frozen backbone: one table of baselines."""

from mtl.fewshot.baselines.fine_tuning import device_of, fine_tune, require_network_inputs, tasks_at_once
from mtl.fewshot.baselines.methods import Method, Predict, in_chunks, one_by_one
from mtl.fewshot.baselines.setup import Baseline, Setup, Value, make_methods, usable
from mtl.fewshot.baselines.table import BASELINES, baselines, choose_rows

__all__ = [
    "BASELINES",
    "Baseline",
    "Method",
    "Predict",
    "Setup",
    "Value",
    "baselines",
    "choose_rows",
    "device_of",
    "fine_tune",
    "in_chunks",
    "make_methods",
    "one_by_one",
    "require_network_inputs",
    "tasks_at_once",
    "usable",
]
