"""Lines of Python that prepare images or texts as a network was trained to see them, with nothing of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl.networks.backbones import Backbone, HFImages, HFText, TimmImages

CONFIG = "mtl.json"
_TIMM = """\
config = json.loads(open("mtl.json").read())["mtl"]
transform = timm.data.create_transform(**config["preprocessing"])
batch = torch.stack([transform(image.convert("{mode}")) for image in images])"""
_IMAGES = """\
processor = transformers.AutoImageProcessor.from_pretrained(".")
batch = processor([image.convert("{mode}") for image in images], return_tensors="pt")["pixel_values"]"""
_TEXTS = """\
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
batch = tokenizer({texts}, padding=True, truncation=True, return_attention_mask=True, return_tensors="pt")"""


@dataclass(frozen=True)
class Preparation:
    """How items become the network's inputs.

    Args:
        imports: modules that the lines need.
        lines: from ``images`` or ``texts`` to ``batch``, a tensor or tensors by name.
        preprocessing: for :data:`CONFIG`.
    """

    imports: tuple[str, ...]
    lines: str
    preprocessing: Any

    def program(self, imports: tuple[str, ...], *lines: str) -> str:
        """All lines together, those that make ``batch`` first."""
        return f"import {', '.join(sorted({*imports, *self.imports}))}\n\n" + "\n".join([self.lines, *lines])


def prepare_items(backbone: Backbone, draft: Path) -> Preparation:
    """The lines; a tokenizer or an image processor that they need goes into the draft."""
    adapter = backbone.adapter
    if isinstance(adapter, TimmImages):
        mode = "L" if adapter.config["input_size"][0] == 1 else "RGB"
        return Preparation(("json", "timm", "torch"), _TIMM.format(mode=mode), adapter.config)
    if not isinstance(adapter, HFImages | HFText):
        return Preparation(("torch",), f"batch = ...  # as {type(adapter).__name__}.preprocess makes it", None)
    processor = processor_of(adapter)
    if processor is not None:
        processor.save_pretrained(draft)
    lines = (
        _TEXTS.format(texts=texts_of(adapter)) if isinstance(adapter, HFText) else _IMAGES.format(mode=mode_of(adapter))
    )
    return Preparation(("torch", "transformers"), lines, None if processor is None else type(processor).__name__)


def processor_of(adapter: HFImages | HFText) -> Any:
    """Image processor or tokenizer; None for a backbone that only takes tensors."""
    try:
        return adapter.processor if isinstance(adapter, HFImages) else adapter.tokenizer
    except ValueError:
        return None


def texts_of(adapter: HFText) -> str:
    """The texts, as the tokenizer gets them."""
    return "[text.lower() for text in texts]" if adapter.lower_case else "texts"


def mode_of(adapter: HFImages) -> str:
    """The mode of PIL that the network sees."""
    return "L" if adapter.shape[0] == 1 else "RGB"
