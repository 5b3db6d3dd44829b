"""Folding a task's scale and shift into the weights: out comes a plain timm or transformers module."""

from mtl.networks.merging.layer import scale_and_shift_input, scale_and_shift_output
from mtl.networks.merging.network import Merged, merge
from mtl.networks.merging.tracing import LinearMap

__all__ = ["LinearMap", "Merged", "merge", "scale_and_shift_input", "scale_and_shift_output"]
