"""An adapted task for use without this package: plain checkpoints, adapters of peft, programs of torch and ONNX."""

from mtl.fewshot.exporting.folder import Exported, Target, export
from mtl.fewshot.exporting.parity import Parity

__all__ = ["Exported", "Parity", "Target", "export"]
