"""An adapted task as a plain checkpoint: a folder that timm or transformers loads without this package."""

from mtl.fewshot.exporting.folder import Exported, export
from mtl.fewshot.exporting.plain import Parity

__all__ = ["Exported", "Parity", "export"]
