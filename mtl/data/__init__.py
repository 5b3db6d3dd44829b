"""Tasks to train and test on: the embedded glyphs and docstrings, and people's own images and texts."""

from mtl.data.embedded.character_tasks import CharacterTasks
from mtl.data.embedded.docstring_tasks import DocstringTasks, docstring_split
from mtl.data.embedded.glyph_tasks import GlyphTasks, contact_sheet
from mtl.data.own.image_tasks import ImageTasks
from mtl.data.own.images import ImageCollection, open_images
from mtl.data.own.splits import ClassSplit, saved_split, split_classes
from mtl.data.own.text_tasks import TextTasks
from mtl.data.own.texts import TextCollection, open_texts
from mtl.data.own.token_cache import TokenCache

__all__ = [
    "CharacterTasks",
    "ClassSplit",
    "DocstringTasks",
    "GlyphTasks",
    "ImageCollection",
    "ImageTasks",
    "TextCollection",
    "TextTasks",
    "TokenCache",
    "contact_sheet",
    "docstring_split",
    "open_images",
    "open_texts",
    "saved_split",
    "split_classes",
]
